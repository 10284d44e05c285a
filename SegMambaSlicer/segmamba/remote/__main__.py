"""A worker whose jobs are done by a server: ``python -m segmamba.remote``, started and spoken to as the worker is.

A process of its own, since Slicer's threads run only now and then; and one that sees the end of Slicer, and then lets
the server delete the job. Address and token come in the environment.
"""

from __future__ import annotations

import os

from segmamba.remote.client import Client
from segmamba.remote.job import segment_on_server
from segmamba.remote.servers import ADDRESS_VARIABLE, TOKEN_VARIABLE
from segmamba.worker.server import main

if __name__ == "__main__":
    client = Client(os.environ[ADDRESS_VARIABLE], os.environ[TOKEN_VARIABLE])
    main(lambda request, progress, cancelled: segment_on_server(request, client, progress, cancelled))
