"""Measures a model's heads once, for the policies that need to know them, and stores the result.

The text is the project's own: a chat of small facts (`dialogues.needle_facts`), so nothing is
downloaded and no dialogue of a dataset is seen. Only directions and one number per kv head are kept
of it. The stored file is named after what it depends on: model files, dtype, text and code.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kvfidelity.atomic_files import replacing
from kvfidelity.cache import calibration
from kvfidelity.cache.calibration import Calibration, calibrate
from kvfidelity.cache.policies import Policy
from kvfidelity.decoding.engine import Engine
from kvfidelity.dialogues.needle_facts import FACT_KINDS, FACT_OPENINGS
from kvfidelity.dialogues.pool import Turn
from kvfidelity.models.checksums import PROVENANCE, file_digests

#: Tokens of the text, most; the model reads it twice.
TOKENS = 1024


def ensure_calibrated(engine: Engine, policy: Policy) -> None:
    """If the policy needs to know the model's heads, measure them, or read what is stored.

    Raises:
        UserError: the tokenizer's chat template cannot be fed turn by turn.
    """
    rotary = engine.model.get_decoder().rotary_emb
    if not policy.needs_calibration or rotary.calibration is not None:
        return
    ids = text_ids(engine)
    provenance = _provenance(engine, ids)
    file = None
    if engine.calibrations is not None:
        file = engine.calibrations / f"{_key(provenance)}.safetensors"
        if (known := _read(file, provenance)) is not None:
            rotary.calibration = known
            return
    found = calibrate(engine.model, ids, provenance)
    if file is not None:
        tensors = {"filters": found.filters.contiguous(), "retrieval": found.retrieval}
        with replacing(file) as temporary:
            save_file(tensors, temporary, metadata=provenance)


def calibration_notes(engine: Engine, policy: Policy) -> dict[str, str]:
    """The note in a run's artifacts about the calibration that its policy ranked by."""
    known = engine.model.get_decoder().rotary_emb.calibration
    if not policy.needs_calibration or known is None:
        return {}
    return {"calibration": json.dumps(dict(known.provenance), sort_keys=True)}


def text_ids(engine: Engine) -> list[int]:
    """Token ids of the text: a user mentions facts, one after another, and is told each again."""
    turns = [
        Turn(
            f"{FACT_OPENINGS[number % len(FACT_OPENINGS)]}{statement.format(value)}",
            f"{kind.questions[number % len(kind.questions)][1]} {value}.",
        )
        for number in range(max(len(kind.statements) for kind in FACT_KINDS))
        for kind in FACT_KINDS
        for statement, value in zip(
            kind.statements[number : number + 1], kind.values[number:], strict=False
        )
    ]
    segments = engine.segmenter.segments(turns)
    ids = [token for part in segments for token in (*part.prompt_ids, *part.reply_ids)]
    return ids[:TOKENS]


def _provenance(engine: Engine, ids: list[int]) -> dict[str, str]:
    """What a calibration depends on, and how many tokens it was measured on."""
    own = [Path(calibration.__file__), Path(__file__)]
    return {
        "model": _model_digest(engine),
        "dtype": str(engine.model.dtype).removeprefix("torch."),
        "text": _digest(json.dumps(ids)),
        "text_is": "dialogues.needle_facts as a chat, fed twice",
        "tokens": str(len(ids)),
        "code": _digest(*(file.read_text(encoding="utf-8") for file in own)),
    }


def _model_digest(engine: Engine) -> str:
    """Of the model's files, as they were fetched; of its weights if it is from no folder."""
    folder = engine.model_dir
    if folder is None:
        weights = engine.model.state_dict().items()
        sums = [[name, list(each.shape), float(each.double().sum())] for name, each in weights]
        return _digest(json.dumps(sums))
    recorded = folder / PROVENANCE
    files: dict[str, Any] = {}
    if recorded.is_file():
        files = json.loads(recorded.read_text(encoding="utf-8")).get("files", {})
    return _digest(json.dumps(files or file_digests(folder), sort_keys=True))


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _key(provenance: dict[str, str]) -> str:
    return _digest(json.dumps(provenance, sort_keys=True))


def _read(file: Path, provenance: dict[str, str]) -> Calibration | None:
    """What is stored; None if nothing is, or something else."""
    try:
        with safe_open(file, framework="pt") as stored:
            if stored.metadata() != provenance:
                return None
            filters, retrieval = (stored.get_tensor(name) for name in ("filters", "retrieval"))
    except (OSError, SafetensorError):
        return None
    return Calibration(filters, retrieval, provenance)
