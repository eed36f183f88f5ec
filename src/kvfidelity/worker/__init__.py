"""A warm process that keeps one model loaded between jobs.

Each generate job is a job of its own with its own artifact; its process is a thin client. The
first client of a workflow starts a detached worker on a Unix socket in a folder only the user can
enter; the worker loads the model once, serves one request at a time or several in lanes, and
leaves when idle. `protocol` is how they talk, `socket_path` where. `client` is the one end;
`server` the other, with `listener`, `requests`, `liveness` and, for lanes, `batch_server`. `job` is
what is done, `command` the command line of jobs that are done so, `gpus` which GPU they get,
`usage` what a job took, `salvage` what a scheduler's killed job leaves.
"""
