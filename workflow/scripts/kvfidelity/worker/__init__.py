"""A warm process that keeps one model loaded between jobs.

Each generate job is a job of its own with its own artifact; its process is a thin client. The
first client of a workflow starts a detached worker on a Unix socket in a folder only the user can
enter; the worker loads the model once, serves one request at a time, and leaves when idle.
`protocol` is how they talk, `place` where, `client` and `server` the two ends, `job` what is done,
`command` the command line of jobs that are done so.
"""
