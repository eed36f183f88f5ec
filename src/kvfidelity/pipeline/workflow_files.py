"""Files that come with the workflow: its scripts, default configuration, claims and rubrics.

The working directory may be elsewhere (`snakemake -s /path/Snakefile`, `--directory elsewhere`). A
configuration, claims and rubrics that lie there are taken in place of the workflow's own.
"""

from __future__ import annotations

from pathlib import Path

#: The folder with the Snakefile.
WORKFLOW = Path(__file__).resolve().parents[3]
CONFIGURATION = "config/config.yaml"
CLAIMS = "config/claims.yaml"
RUBRICS = "resources/rubrics"


def workflow_file(name: str, root: Path = Path()) -> Path:
    """A file that comes with the workflow.

    Args:
        name: its path relative to the Snakefile.
        root: the working directory.

    Returns:
        The file of this path in the working directory if there is one, else the workflow's own.
    """
    here = root / name
    return here if here.exists() else WORKFLOW / name


def rubric_file(rubric: str, root: Path = Path()) -> Path:
    """The file of a rubric, which may not exist."""
    return workflow_file(f"{RUBRICS}/{rubric}.md", root)
