"""The runs that findings are made of, in the order of `make findings`.

    python -m kvfidelity.findings.plan          # one line a run: its folder, and its files

A finding is a configuration in `config/findings/`, or an experiment; a model is a second one, in
`config/findings/models/`. Nothing heavy is imported.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kvfidelity.cli import main_guard
from kvfidelity.errors import UserError
from kvfidelity.pipeline.run_folders import folder_of_files

FOLDER = Path("config/findings")
EXPERIMENTS = Path("config/experiments")
SMOLLM2, QWEN = "smollm2-135m", "qwen2.5-coder-0.5b"
MODELS = (SMOLLM2, QWEN)


def of_model(model: str) -> Path:
    """The configuration file that a finding is run with for a model."""
    return FOLDER / "models" / f"{model}.yaml"


@dataclass(frozen=True)
class Finding:
    """One configuration that is run per model.

    Attributes:
        name: of its folder in `docs/findings`, and of its file in `config/findings`.
        question: which part of the page it is of.
        experiment: the file in `config/experiments` that it is, if it is one.
        models: for which it is run.
        trained: of a finding that trains models and runs these too, for each model the files that
            are added to its experiment, which say what is trained from it.
        data: a file that the user fetches, as its configuration says; without it `make findings`
            leaves the finding out.
    """

    name: str
    question: str
    experiment: str = ""
    models: tuple[str, ...] = MODELS
    trained: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    data: str = ""

    def files(self, model: str) -> list[Path]:
        """The configuration files of its run with a model, as given to Snakemake."""
        own = FOLDER / f"{self.name}.yaml"
        file = EXPERIMENTS / f"{self.experiment}.yaml" if self.experiment else own
        return [file, *self.trained.get(model, (of_model(model),))]

    def command(self, model: str) -> str:
        """What to type for its run with a model."""
        return f'make run CONFIG="{" ".join(map(str, self.files(model)))}"'


FINDINGS = (
    Finding("paper_reference", "paper"),
    Finding("paper_own", "paper"),
    Finding("equal_budgets", "budgets"),
    # A dialogue of 1.5 trained windows: of 8,192 tokens there are such, of 32,768 they are joined.
    Finding("through_window", "window", models=(SMOLLM2,)),
    Finding("through_window_joined", "window", models=(QWEN,)),
    Finding("next_checks", "checks"),
    Finding("question1", "question1", experiment="question1_gpu"),
    Finding(
        "question2",
        "question2",
        experiment="finetune_gpu",
        # The experiment says what is trained from SmolLM2.
        trained={SMOLLM2: (), QWEN: (of_model(QWEN), FOLDER / "models/qwen_trainings.yaml")},
    ),
    Finding(
        "question2_replies",
        "question2",
        experiment="finetune_replies_gpu",
        models=(SMOLLM2,),
        trained={SMOLLM2: ()},
    ),
    Finding("disruption", "question3", experiment="disruption_gpu"),
    Finding("question4", "question4", experiment="question4_gpu"),
    Finding("cost", "cost"),
    Finding("locomo", "checks", data="locomo10.json"),
)
BY_NAME = {finding.name: finding for finding in FINDINGS}


def finding_named(name: str) -> Finding:
    """The finding of a name.

    Raises:
        UserError: there is none; with the names that there are.
    """
    if name not in BY_NAME:
        raise UserError(f"no finding is called {name!r}; there are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def planned(model: str = "") -> list[tuple[Finding, str]]:
    """The runs of `make findings`, model by model; those whose data is not in the working folder
    are left out.

    Args:
        model: only this one's; empty for all.

    Raises:
        UserError: no model of the findings has this name.
    """
    if model and model not in MODELS:
        raise UserError(f"no model of the findings is called {model!r}; there are {MODELS}")
    return [
        (finding, name)
        for name in ([model] if model else MODELS)
        for finding in FINDINGS
        if name in finding.models and (not finding.data or Path(finding.data).is_file())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="The runs of the findings: finding, model, files.")
    parser.add_argument("--model", default="", help="only this model's")
    for finding, model in planned(parser.parse_args().model):
        files = finding.files(model)
        print(finding.name, model, folder_of_files({}, files), *files)


if __name__ == "__main__":
    main_guard(main)
