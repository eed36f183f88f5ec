"""A warm process that keeps one model loaded between jobs.

Each generate job is a job of its own with its own artifact; its process is a thin client. The
first client of a workflow starts a detached worker on a Unix socket in a folder only the user can
enter; the worker loads the model once, serves one request at a time or several in lanes, and
leaves when idle. `protocol` is how they talk, `place` where. `client` is the one end; `server` the
other, with `door`, `desk`, `watch` and, for lanes, `together`. `job` is what is done, `command` the
command line of jobs that are done so, `gpus` which GPU they get, `usage` what a job took,
`finished` what a scheduler's killed job leaves.
"""
