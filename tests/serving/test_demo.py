"""The demonstration works in an empty folder: payments are decided, a candidate is judged, the table is printed."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from peira.environments.payment import PaymentWorld
from peira.serving import demo
from peira.serving.command import serve
from peira.serving.database import open_database
from peira.serving.options import Options
from peira.serving.requests import read_decide


def test_contexts_travel_as_they_would_be_encoded():
    world = PaymentWorld(0)
    choices = world.contexts(50, np.random.default_rng(0), 0)
    asked = [read_decide(json.dumps(body).encode(), 8) for body in demo.as_served(choices, world.schema)]
    encoded = world.schema.encode(
        [of.context for of in asked], [of.actions for of in asked], [of.features for of in asked]
    )
    for name in ("number", "category", "action", "feature"):
        sent = getattr(choices, name)
        width = encoded.action.shape[1]
        np.testing.assert_array_equal(
            getattr(encoded, name), sent[:, :width] if sent.ndim > 2 or name == "action" else sent
        )


def test_a_person_sees_a_policy_take_over(tmp_path, monkeypatch):
    for name in ("TRAIN_SECONDS", "REPORT_SECONDS", "WINDOW_SECONDS"):
        monkeypatch.setattr(demo, name, 1.0)

    class Watched(io.StringIO):
        def write(self, text: str) -> int:
            written = super().write(text)
            if "generation 1 is refused" in text or "generation 1 takes over" in text:
                raise KeyboardInterrupt  # Enough seen.
            return written

    printed = Watched()
    options = Options(port=0, demo=True, demo_rate=300.0, demo_seconds=60.0)
    with pytest.raises(KeyboardInterrupt):
        serve(tmp_path / "new", options, Console(file=printed, width=200))
    lines = printed.getvalue().splitlines()
    assert len(lines) >= 3 and all("mean reward" in line and "p99 ms" in line for line in lines)
    assert "generation 0, " in lines[0] and "uniform until" in lines[0]
    assert "errors 0" in lines[-1]
    database = open_database(None, tmp_path / "new")
    counts = database.counts()
    database.close()
    assert counts["decisions"] > 1000 and counts["outcomes"] > 1000
    assert (tmp_path / "new" / "candidates" / "generation-0001").is_dir()


def test_a_folder_of_another_service_is_left_alone(tmp_path):
    (tmp_path / "schema.json").write_text(
        '{"actions":["a"],"numbers":[],"categories":{},"action_numbers":[]}'
    )
    with pytest.raises(ValueError, match="holds a service of other decisions; name a new folder"):
        serve(tmp_path, Options(demo=True), Console(quiet=True))


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=rf"port: 127.0.0.1:{port} cannot be listened on .*choose another --port"
        ):
            serve(tmp_path / "new", Options(port=port, demo=True), Console(quiet=True))
