"""Clean and select dialogues: a pool and a manifest."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder of the fetched dataset")
    parser.add_argument("--model", required=True, type=Path, help="directory of the fetched model")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--reach", type=json.loads, help="what runs ask of the dialogues, as JSON")
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder for a copy of it")
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_json
    from kvfidelity.dialogues.extract import extract
    from kvfidelity.dialogues.segments import ChatSegmenter
    from kvfidelity.dialogues.template_check import check_template
    from kvfidelity.dialogues.tokenizer import load_tokenizer
    from kvfidelity.models.checksums import PROVENANCE, copy_without_weights
    from kvfidelity.models.end_tokens import end_token_ids
    from kvfidelity.pipeline.reach import longest_of, not_reached, refuse_too_few, sentence
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import write_parquet

    check_template(options.model)
    tokenizer = load_tokenizer(options.model)
    segmenter = ChatSegmenter(tokenizer, end_token_ids(options.model))
    pool, manifest = extract(options.data, options.spec, segmenter)
    if options.reach:
        refuse_too_few(options.reach, pool.height)
        longest = longest_of(pool, options.reach, segmenter)
        manifest["not_reached"] = not_reached(options.reach, longest, options.model)
    copy_without_weights(options.model, options.tokenizer)
    # What a larger `count` is compared with, as long as these stay the same.
    write_json(options.manifest, manifest | notes_of("dialogues", options.spec))
    model, dataset = options.model / PROVENANCE, options.data / PROVENANCE
    notes = notes_of("dialogues", options.spec, model=model, dataset=dataset)
    write_parquet(pool, options.pool, kind="dialogues", metadata=notes)
    print(f"kept {manifest['kept']} of {manifest['conversations_read']} conversations")
    for entry in manifest.get("not_reached", []):
        print(sentence(entry))
    print("dropped:", json.dumps(manifest["dropped"]))


if __name__ == "__main__":
    main_guard(main)
