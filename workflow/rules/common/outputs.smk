def length_figures():
    """One figure for each dataset as each model's tokenizer sees it."""
    pairs = sorted({(cell.model, cell.dataset) for cell in cells(SETTINGS)})
    return [
        f"<results>/figures/lengths/{model}/{dataset}.svg" for model, dataset in pairs
    ]


def tables_for_report(writer):
    """The tables of a rule; those of Snakemake's own report with their place and what they show."""
    names = {f"<results>/tables/{name}.csv": name for name in REPORTED_TABLES}
    return [
        table_for_report(path, names[path]) if path in names else path
        for path in table_files(writer)
    ]


def table_for_report(path, name):
    """A table with its place and what it shows in Snakemake's own report."""
    return report(
        path,
        caption="../report/table.rst",
        category="Tables",
        labels={"item": f"table {name}", "shows": TABLE_ROWS[name]},
    )


def figure_for_report(figure):
    """A figure's SVG with its place and caption in Snakemake's own report."""
    settings = SETTINGS["report"]
    caption = figure.caption_with(settings["confidence"])
    return report(
        f"<results>/figures/{figure.name}.svg",
        caption="../report/figure.rst",
        category=figure.category,
        labels={"item": f"figure {figure.name}", "shows": caption},
    )
