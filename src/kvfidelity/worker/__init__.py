"""A warm process that keeps one model loaded between generate jobs.

Each generate job has its own artifact and its own process, which is only a thin client. The worker
is a separate process that loads the model once and does the work of many jobs.

Who starts it: the first job that finds no worker on its socket (`client._connect`, under a lock).
There is one socket per user, checkout, cluster job and device (`socket_path`), in a folder that
only the user can enter. The worker is detached, so it outlives the job that started it.

What ends it:

====================================  ==================================  =========================
when                                  how                                 where
====================================  ==================================  =========================
no request for                        it exits                            `listener.Listener.wait`
KVFIDELITY_WORKER_IDLE_S (60 s); ten
times that with results of a batch
that no job has asked for
its first client does not come        it exits                            `listener.Listener.wait`
within 10 s
its cluster job has ended             it exits within 1 s if idle         `listener.Listener.wait`
(`socket_path.owner_pid`)
the workflow ends, well or not        a stop request; SIGTERM if it does  `client.stop`, called by
                                      not answer within 3 s               stop_worker.py
a client needs another model, device  it exits; that client starts a new  `server._handle`,
or code (another `job.WorkerConfig`)  worker. With results that no job    `batch_server.BatchServer`
                                      has asked for, 10 s after its last
                                      client. With a batch and other
                                      weights of the same model, it puts
                                      these in place and goes on; runs
                                      on their way are dropped
its only client dies in a request     it gives the request up at the next `liveness.Liveness`
                                      event, or exits after 5 s
a client of a batch dies              it gives that run up at its next    `runs.Run.send`
                                      event
all clients of a batch die            it exits after what it is computing `BatchServer._continues`
a request fails unexpectedly          the client gets the traceback; the  `requests.RequestHandler`
                                      worker exits
it crashes, is killed, or one of its  the client starts another; after 3  `client.request`
own threads has an error              losses the job fails
====================================  ==================================  =========================

Threads of a worker with a batch; `BatchServer._lock` guards what is known of clients and runs:

====================================  ============================================================
main                                  loads the model, starts runs, computes them
                                      (`decoding.scheduler`) and sends their events; in between it
                                      serves clients, and with nothing to compute it waits for them
`_answer_while_computing`             while runs are computed: accepts clients and hands out what
                                      has been computed; at a stop, or an error of its own, it ends
                                      the process at once
"contents"                            makes the content of files that no job has asked for yet
"artifacts"                           writes the files of a job, then tells its client
====================================  ============================================================

With a batch of one, `server` does all in the main thread, and `liveness` watches the client.

Where the rest is: `server` serves one request at a time; `batch_server` computes several runs in
one batch (`runs`), and those that follow ahead of their requests (`ahead`); `requests` is what both
have in common, `protocol` the messages; `job` is what a job asks for, and `generator` does that
work.
`command` is the command line of jobs, `gpus` assigns GPUs, `claims` says which GPU a planned run
belongs to, `serving` what a worker serves, `usage` measures a job, and `salvage` keeps finished
runs of a cluster job that is killed.
"""
