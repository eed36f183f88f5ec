"""What each Snakemake does before it reads a workflow, done once by the fork server of the tests.

It looks through all installed packages for plugins, imports them and makes their options; what it
imports only when it needs it takes as long again.
"""

import snakemake.cli
import snakemake.profiles
import snakemake.report.common
import snakemake.storage

snakemake.cli.get_argument_parser()
