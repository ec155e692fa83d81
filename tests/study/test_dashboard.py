"""The index of all studies and runs, as a browser would fetch it."""

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from study import dashboard
from tasks.errors import InputError
from tests.study.conftest import record, right


@pytest.fixture
def served(gaining):
    (gaining.folder / "study.html").write_text("the page")
    server = dashboard.serve(Path("runs"), 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def test_the_index_shows_studies_searches_and_single_runs(served, gaining):
    run = Path("runs/vision-x/20260101-000000")
    run.mkdir(parents=True)
    (run / "metrics.json").write_text(json.dumps(record(0, right(87, 100))))
    found = {"best": {"model.reg.dropout": 0.3}, "expected": [0.91, 0.01], "trials": [{}, {}]}
    sweep = Path("runs/sweeps/my search")
    sweep.mkdir(parents=True)
    (sweep / "trials.json").write_text(json.dumps(found))
    page = fetched(served)
    assert "Best is both: +12.00 points" in page
    assert "9 of 9 runs" in page
    assert "87.00" in page
    assert "model.reg.dropout 0.3" in page
    assert "91.00 ± 1.00" in page
    assert "/sweeps/my%20search/sweep.html" in page
    assert fetched(f"{served}/studies/vision-builtin/study.html") == "the page"
    # Made anew each time.
    (gaining.folder / "both-s2" / "metrics.json").unlink()
    assert "8 of 9 runs" in fetched(served)


def test_a_broken_file_does_not_break_the_index(served, gaining):
    (gaining.folder / "none-s0" / "metrics.json").write_text("{")
    for name in ("sweeps/broken/trials.json", "vision-x/time/metrics.json"):
        file = Path("runs") / name
        file.parent.mkdir(parents=True)
        file.write_text("[]")
    page = fetched(served)
    assert "none-s0/metrics.json is no result of this version" in page
    assert page.count("cannot be read") == 2


def test_nothing_outside_of_the_runs_is_served(served):
    Path("secret.txt").write_text("secret")
    for path in ("/../secret.txt", "/%2e%2e/secret.txt"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetched(served + path)


def test_a_port_that_is_taken_is_named(served):
    port = int(served.rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"PORT={port} cannot be used .* choose another PORT"):
        dashboard.serve(Path("runs"), port)
    with pytest.raises(InputError, match="PORT=99999"):
        dashboard.serve(Path("runs"), 99_999)
