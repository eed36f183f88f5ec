"""A folder's weights are those of its config, or the folder is refused and the keys are named."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvfidelity.errors import UserError
from kvfidelity.models.declared import check_declared
from kvfidelity.models.fetch import fetch_model
from kvfidelity.models.load import load_model
from kvfidelity.models.weights import load_weights
from tests.models.tiny import save_tiny

#: The bar is 500; a run with KVFIDELITY_FUZZ=500 reaches it.
FUZZED = int(os.environ.get("KVFIDELITY_FUZZ", "40"))
IDS = torch.arange(3, 60)[None]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


def edit(folder: Path, change: Any) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json; None takes one out."""
    config = json.loads((folder / "config.json").read_text()) | values
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def refuse(folder: Path, reason: str) -> None:
    """Refused when fetched and, without that, when loaded."""
    with pytest.raises(UserError, match=reason):
        fetch_model({"source": "path", "path": str(folder)}, folder.parent / "fetched")
    with pytest.raises(UserError, match=reason):
        load_model(folder, "float32", "cpu")


def test_a_missing_output_layer_is_named(tiny: Path) -> None:
    edit(tiny, lambda weights: weights.pop("lm_head.weight"))
    refuse(tiny, r"missing: lm_head\.weight")


def test_a_missing_bias_like_weight_of_one_layer_is_named(tiny: Path) -> None:
    edit(tiny, lambda weights: weights.pop("model.layers.1.input_layernorm.weight"))
    refuse(tiny, r"missing: model\.layers\.1\.input_layernorm\.weight")


def test_a_weight_that_the_model_does_not_have_is_named(tiny: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}
    edit(tiny, lambda weights: weights.update(bias))
    refuse(tiny, r"not in the model: model\.layers\.0\.self_attn\.q_proj\.bias")


def test_a_weight_of_another_shape_is_named(tiny: Path) -> None:
    edit(tiny, lambda weights: weights.update({"model.norm.weight": torch.ones(7)}))
    refuse(tiny, r"another shape: model\.norm\.weight")


def test_fewer_layers_in_the_config_leave_weights_over(tiny: Path) -> None:
    edit_config(tiny, num_hidden_layers=1)
    refuse(tiny, r"not in the model: model\.layers\.1\.")


def test_integers_are_no_weights(tiny: Path) -> None:
    edit(tiny, lambda weights: weights.update({"model.norm.weight": torch.ones(64).to(torch.int8)}))
    refuse(tiny, r"not floating numbers: model\.norm\.weight")


@pytest.mark.parametrize(("factor", "taken"), [(1.0, True), (2.0, False)])
def test_stored_frequencies_pass_if_they_are_the_configs(
    tiny: Path, factor: float, taken: bool
) -> None:
    frequencies = 10000.0 ** -(torch.arange(0, 16, 2) / 16) * factor
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(tiny, lambda weights: weights.update({name: frequencies}))
    if taken:
        load_model(tiny, "float32", "cpu")
    else:
        # transformers itself leaves such keys out of its report.
        refuse(tiny, r"not in the model: model\.layers\.0\.self_attn\.rotary_emb\.inv_freq")


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "compressed-tensors", "x9"])
def test_quantised_weights_are_refused_by_the_name_of_the_method(tiny: Path, method: str) -> None:
    edit_config(tiny, quantization_config={"quant_method": method, "bits": 4})
    refuse(tiny, rf"quantised \({method}, .*use the checkpoint .* or a GGUF file")


@pytest.mark.parametrize(
    "key", ["rms_norm_eps", "hidden_act", "num_attention_heads", "rope_parameters"]
)
def test_what_decides_logits_must_be_stated(tiny: Path, key: str) -> None:
    edit_config(tiny, **{key: None})
    with pytest.raises(UserError):
        fetch_model({"source": "path", "path": str(tiny)}, tiny.parent / "fetched")


def test_a_scaled_rope_states_its_kind_and_its_numbers(tiny: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    scaled = {"rope_theta": 1e4, "factor": 8.0}
    with pytest.raises(UserError, match="does not state rope_type"):
        check_declared(config | {"rope_parameters": scaled})
    with pytest.raises(UserError, match="high_freq_factor, low_freq_factor, original_max"):
        check_declared(config | {"rope_parameters": scaled | {"rope_type": "llama3"}})


def test_the_base_of_the_first_llamas_was_a_constant() -> None:
    llama = {
        "model_type": "llama",
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "rope_scaling": None,
    }
    check_declared(llama | {"transformers_version": "4.31.0.dev0"})
    for version in ("4.40.0", ""):
        with pytest.raises(UserError, match="rope_theta"):
            check_declared(llama | {"transformers_version": version})


def test_the_meta_device_needs_no_memory_for_weights(tiny: Path) -> None:
    model = load_weights(tiny, torch.float32, "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_the_proof_is_in_the_provenance(tiny: Path) -> None:
    fetch_model({"source": "path", "path": str(tiny)}, tiny.parent / "fetched")
    provenance = json.loads((tiny.parent / "fetched/provenance.json").read_text())
    assert 0 < provenance["exactness"]["full_forward"] < 1e-3


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        found: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return found


def test_no_fuzzed_folder_is_accepted_with_other_logits(tiny: Path) -> None:
    """Keys of the config and of the weights missing, added, renamed, resized, of another type."""
    expected = logits(tiny)
    config = json.loads((tiny / "config.json").read_text())
    weights = load_file(tiny / "model.safetensors")
    draw = random.Random(0)
    accepted = 0
    for number in range(FUZZED):
        other, tensors = dict(config), dict(weights)
        what = fuzz_config(other, draw) if number % 2 else fuzz_weights(tensors, draw)
        (tiny / "config.json").write_text(json.dumps(other))
        save_file(tensors, tiny / "model.safetensors", {"format": "pt"})
        target = tiny.parent / "fetched"
        try:
            fetch_model({"source": "path", "path": str(tiny)}, target)
            model, _ = load_model(target, "float32", "cpu")
        except UserError:
            continue
        accepted += 1
        with torch.inference_mode():
            found = model(IDS).logits
        assert torch.allclose(found, expected, atol=1e-5), what
    assert 0 < accepted < FUZZED


def fuzz_config(config: dict[str, Any], draw: random.Random) -> str:
    place, path = config, "config.json"
    key = draw.choice(sorted(config))
    if isinstance(config[key], dict):
        place, path = dict(config[key]), f"{path}: {key}"
        config[key] = place
        key = draw.choice(sorted(place))
    kind = draw.choice(["missing", "added", "renamed", "resized"])
    if kind == "added":
        place[draw.choice(["sliding_window", "attention_bias", "extra", "num_experts"])] = 2
    elif kind == "resized" and key in SIZES:
        place[key] = place[key] * 2 if draw.random() < 0.5 else place[key] // 2
    elif kind == "renamed":
        place[f"{key}_"] = place.pop(key)
    else:
        del place[key]
    return f"{path}: {kind} {key}"


SIZES = {
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "vocab_size",
}


def fuzz_weights(weights: dict[str, torch.Tensor], draw: random.Random) -> str:
    key = draw.choice(sorted(weights))
    kind = draw.choice(["missing", "added", "renamed", "resized", "type"])
    tensor = weights[key]
    if kind == "added":
        weights[key.replace(".weight", ".bias")] = torch.ones(tensor.shape[0])
    elif kind == "resized":
        weights[key] = draw.choice([tensor[:-1], torch.cat([tensor, tensor]), tensor[None]])
        weights[key] = weights[key].contiguous()
    elif kind == "type":
        weights[key] = tensor.to(draw.choice([torch.float64, torch.int8, torch.uint8, torch.bool]))
    else:
        del weights[key]
        if kind == "renamed":
            weights[key.replace("weight", "wieght")] = tensor
    return f"weights: {kind} {key}"
