"""The app's server in a thread, on two untrained runs."""

import http.client
import json
import threading
from contextlib import contextmanager
from urllib.parse import urlencode

from bigan_jax.commands.web.scoring import LoadedRun
from bigan_jax.commands.web.server import HOST, listen, make_app, make_server
from bigan_jax.configs import cvae, fcae
from tests.helpers.runs import TINY_FCAE, configured
from tests.helpers.untrained import write_untrained_run

TOKEN = "a-token_of-the-tests"
MAX_BYTES = 200_000
CONDITIONS = ("bottle", "leaf")


def write_runs(folder):
    """Writes two runs: a model without conditions, and one of two conditions that pads images."""
    evaluation = {"threshold": 5.0, "calibration_scores": [1.0, 3.0, 6.0], "pixel_threshold": 0.36}
    evaluation |= {"color_limits": {"combined": 0.5}}
    write_untrained_run(folder / "fcae", configured(fcae, "phantom", TINY_FCAE), model="fcae", **evaluation)
    fields = {"data.image_size": 16, "data.fit": "pad", "model.latent": 4, "model.widths": (4,)}
    config = configured(cvae, "phantom", fields)
    write_untrained_run(folder / "cvae", config, model="cvae", conditions=list(CONDITIONS), **evaluation)
    return folder / "fcae", folder / "cvae"


class Server:
    """A running server, and requests to it."""

    def __init__(self, port: int):
        self.port, self.url = port, f"http://{HOST}:{port}/{TOKEN}/"

    def request(self, method, path, body=None, host=None):
        """Returns the status, the headers and the body."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        connection.request(method, path, body, {"Host": host or f"{HOST}:{self.port}"})
        response = connection.getresponse()
        result = response.status, dict(response.getheaders()), response.read()
        connection.close()
        return result

    def score(self, index, content, **query):
        """Returns the status and the JSON object of a request to score."""
        status, _, body = self.request("POST", f"/{TOKEN}/score/{index}?{urlencode(query)}", content)
        return status, json.loads(body)


@contextmanager
def serving(runs: list[LoadedRun]):
    """Serves runs in a thread until the context ends."""
    with listen(0) as listener:
        server = make_server(make_app(runs, TOKEN, MAX_BYTES))
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        yield Server(listener.getsockname()[1])
        server.should_exit = True
        thread.join()
