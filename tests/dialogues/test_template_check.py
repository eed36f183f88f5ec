"""A chat template that never ends is refused; its process is ended, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvfidelity.dialogues.template_check import check_template
from kvfidelity.errors import UserError
from tests.dialogues.conftest import make_tokenizer

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NESTED = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set ns.x = ns.x ~ ns.x %}"
LATE = "is not done after 1 s"
#: What stands before a template that is right.
RUNAWAY = {
    "nested loops": (NESTED, f"the chat template of .* {LATE}"),
    "for a later turn": ("{% if messages|length > 4 %}" + NESTED + "{% endif %}", LATE),
    "a power of powers": ("{{ 0 * 9 ** (9 ** 9) }}", LATE),
    "a text that is doubled": (
        "{% set ns = namespace(x='ab') %}{% for n in range(60) %}" + DOUBLED + "{% endfor %}",
        rf"fails \(MemoryError\)|{LATE}",
    ),
    "a long range": ("{% for a in range(10 ** 9) %}{% endfor %}", "fails .*Range too big"),
}


def folder(tmp_path: Path, template: str) -> Path:
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "runaway-model")
    return tmp_path / "runaway-model"


@pytest.mark.parametrize(("start", "message"), RUNAWAY.values(), ids=RUNAWAY)
def test_a_template_that_does_not_end_is_refused_by_its_models_name(
    tmp_path: Path, start: str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_template(folder(tmp_path, start + TURNS), rendering_s=1)
    text = str(caught.value)
    assert "runaway-model" in text and "\n" not in text and "use another model" in text


def test_a_template_that_ends_is_fine(tmp_path: Path) -> None:
    check_template(folder(tmp_path, TURNS))


def test_a_broken_folder_is_refused_as_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="fetch the model again"):
        check_template(tmp_path)


def test_lower_limits_of_the_caller_are_kept(tmp_path: Path) -> None:
    """As under `ulimit`, or a scheduler that limits a job's memory."""
    limited = (
        "import resource, sys; from pathlib import Path; "
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); "
        "resource.setrlimit(resource.RLIMIT_CPU, (500, 500)); "
        "from kvfidelity.dialogues.template_check import check_template; "
        "check_template(Path(sys.argv[1]))"
    )
    model = folder(tmp_path, TURNS)
    done = subprocess.run(
        [sys.executable, "-c", limited, str(model)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
