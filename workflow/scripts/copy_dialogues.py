"""Give a fine-tuned model the dialogues of its base: a pool and a manifest."""

import argparse
import json
from pathlib import Path

from kvfidelity.cli import main_guard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, type=Path, help="pool of the base model")
    parser.add_argument("--base-manifest", required=True, type=Path)
    parser.add_argument("--base-tokenizer", required=True, type=Path)
    parser.add_argument("--data-record", required=True, type=Path, help="of the fetched dataset")
    parser.add_argument("--model", required=True, type=Path, help="directory of the model")
    parser.add_argument("--spec", required=True, type=json.loads, help="config entry, as JSON")
    parser.add_argument("--reach", type=json.loads, help="what runs ask of the dialogues, as JSON")
    parser.add_argument("--pool", required=True, type=Path)
    parser.add_argument("--manifest", required=True, type=Path)
    parser.add_argument("--tokenizer", required=True, type=Path, help="folder for a copy of it")
    options = parser.parse_args()
    from kvfidelity.atomic_files import write_json
    from kvfidelity.bounded_json import read_json
    from kvfidelity.dialogues.segments import ChatSegmenter
    from kvfidelity.dialogues.tokenizer import load_tokenizer
    from kvfidelity.finetuning.base_dialogues import check_same_tokenizer, pool_of_base
    from kvfidelity.models.checksums import PROVENANCE, copy_without_weights
    from kvfidelity.models.end_tokens import end_token_ids
    from kvfidelity.pipeline.reach import longest_of, not_reached, sentence
    from kvfidelity.pipeline.staleness import notes_of
    from kvfidelity.records.artifacts import write_parquet

    model = options.model / PROVENANCE
    notes = notes_of("dialogues", options.spec, model=model, dataset=options.data_record)
    pool = pool_of_base(options.base, notes)
    copy_without_weights(options.model, options.tokenizer)
    check_same_tokenizer(options.base_tokenizer, options.tokenizer)
    manifest = read_json(options.base_manifest)
    # The thresholds are those of this model's own runs.
    manifest.pop("not_reached", None)
    if options.reach:
        segmenter = ChatSegmenter(load_tokenizer(options.model), end_token_ids(options.model))
        longest = longest_of(pool, options.reach, segmenter)
        manifest["not_reached"] = not_reached(options.reach, longest, options.model)
    write_json(options.manifest, manifest)
    write_parquet(pool, options.pool, kind="dialogues", metadata=notes)
    print(f"{manifest['kept']} dialogues are those of {options.base}")
    for entry in manifest.get("not_reached", []):
        print(sentence(entry))


if __name__ == "__main__":
    main_guard(main)
