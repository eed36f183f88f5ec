# With `merge` in the configuration every run is taken from the folders named there, with what was
# measured and judged of it; only what they lack is made here. Without it, no file needs this rule.
# Where two rules make a file, Snakemake takes the one without wildcards: this one.
rule merge:
    input:
        [file for files in MERGED.values() for file in files],
    output:
        [f"<results>/{name}" for name in MERGED],
        "<results>/merge.json",
    log:
        "<logs>/merge.log",
    conda:
        "../../envs/analysis.yaml"
    params:
        settings=json.dumps(merge_settings(SETTINGS), sort_keys=True),
        code=stage_digest("merge"),
    shell:
        'python "$SCRIPTS/merge.py" --settings {params.settings:q} --out "$RESULTS" '
        "> {log:q} 2>&1"
