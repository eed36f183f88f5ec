"""Loading a model directory: what fits loads, what does not is one line."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch

from kvfidelity.decoding.engine import Engine
from kvfidelity.errors import UserError
from kvfidelity.models.geometry import Geometry
from kvfidelity.models.load import check_kernels_compile, load_model, resolve_device
from tests.dialogues.test_tokenizer import HOSTILE
from tests.models.tiny import save_tiny


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_loads_in_the_dtype_asked_for(tiny: Path, dtype: str) -> None:
    model, _ = load_model(tiny, dtype, "cpu")
    assert model.dtype == getattr(torch, dtype)
    assert not model.training


def test_geometry_from_json_agrees_with_the_loaded_model(tiny: Path) -> None:
    geometry = Geometry.of(tiny)
    assert (geometry.layers, geometry.kv_heads, geometry.head_size) == (2, 2, 16)
    for dtype in ("float32", "bfloat16"):
        engine = Engine.load(tiny, dtype, "cpu")
        assert geometry.token_bytes(dtype) == engine.token_bytes
        assert geometry.window == engine.window


def test_geometry_of_llama_3_8b(tmp_path: Path) -> None:
    config = {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Geometry.of(tmp_path).token_bytes("bfloat16") == 131_072


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config\.json"):
        load_model(tmp_path, "float32", "cpu")
    with pytest.raises(UserError, match=r"no config\.json"):
        Geometry.of(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_file_is_named_with_the_remedy(tiny: Path, file: str, damage: str) -> None:
    offset = tiny / file
    size = offset.stat().st_size
    if damage == "truncated":
        with offset.open("r+b") as handle:
            handle.truncate(size // 2)
    else:
        offset.write_bytes(b"\0" * size)
    with pytest.raises(UserError, match=r"is damaged .* delete the model's folder and run again"):
        load_model(tiny, "float32", "cpu")


#: Values of a config.json that no library may crash on, and sizes that take no memory or time.
ODD_VALUES: list[tuple[str, object]] = [
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 10**30),
    ("head_dim", 10**9),
    ("vocab_size", 10**9),
    ("hidden_size", 10**6),
    ("intermediate_size", 10**12),
    ("num_attention_heads", 0),
    ("num_key_value_heads", -1),
    ("num_key_value_heads", 1.5),
    ("rope_parameters", "default"),
    ("rope_parameters", [1]),
    ("rope_parameters", {"rope_type": ["default"]}),
    ("layer_types", 7),
    ("model_type", ["llama"]),
    ("hidden_act", None),
    ("architectures", 3),
    ("dtype", "float7"),
    ("transformers_version", 5),
]


@pytest.mark.parametrize(("key", "value"), ODD_VALUES, ids=map(str, ODD_VALUES))
def test_an_odd_value_of_the_config_is_one_line(tiny: Path, key: str, value: object) -> None:
    """The memory of a process is not bounded here: what is too large is found by its shape."""
    file = tiny / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load_model(tiny, "float32", "cpu")
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000
    else:
        assert key in ("architectures", "transformers_version", "dtype")  # not read here
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize("text", ["[1]", "7", "null", '"llama"', '{"num_hidden_layers": 2}'])
def test_a_config_of_another_form_is_one_line(tiny: Path, text: str) -> None:
    (tiny / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        load_model(tiny, "float32", "cpu")
    with pytest.raises(UserError, match=r"config\.json"):
        Geometry.of(tiny)


@pytest.mark.parametrize("value", [0, -1, 2**31, 1.5, "8", True, [8], None])
@pytest.mark.parametrize("key", ["num_hidden_layers", "max_position_embeddings", "hidden_size"])
def test_a_size_of_the_cache_is_a_whole_number(tmp_path: Path, key: str, value: object) -> None:
    config = {
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "hidden_size": 4096,
        "max_position_embeddings": 8192,
    }
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=f"{key} is .*not a whole number"):
        Geometry.of(tmp_path)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "special_tokens_map.json",
        "generation_config.json",
    ],
)
def test_a_hostile_file_is_named_with_the_remedy(tiny: Path, name: str, text: str) -> None:
    (tiny / name).write_text(text)
    with pytest.raises(UserError, match=r"is damaged .* delete the model's folder") as caught:
        load_model(tiny, "float32", "cpu")
    message = str(caught.value)
    assert f"{tiny / name} is damaged" in message and "\n" not in message


def test_a_broken_file_that_nothing_reads_is_no_matter(tiny: Path) -> None:
    (tiny / "trainer_state.json").write_text(HOSTILE["arrays"])
    assert load_model(tiny, "float32", "cpu")


def test_an_unknown_dtype_is_named(tiny: Path) -> None:
    with pytest.raises(UserError, match="dtype 'int4' is unknown; choose one of float32"):
        load_model(tiny, "int4", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no GPU here"):
        resolve_device("cuda:0")
    assert resolve_device("auto") == torch.device("cpu")


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UserError, match="device 'tpu!'"):
        resolve_device("tpu!")


def test_what_a_gpu_needs_to_compile_its_kernels_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("kvfidelity.models.load.find_spec", lambda name: None)
    monkeypatch.setattr("kvfidelity.models.load.which", lambda name: None)
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    with pytest.raises(UserError, match=r"triton .*C compiler .*Python\.h.*device: cpu"):
        check_kernels_compile()
