"""The index of all studies and runs, over HTTP."""

import http.client
import json
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from study import dashboard, report
from tasks.errors import InputError
from tests.study.advised import plant_advice
from tests.study.conftest import record, right


@pytest.fixture
def served(gaining):
    (gaining.folder / "study.html").write_text("the page")
    server = dashboard.serve(Path("runs"), 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def fetched(url):
    with urllib.request.urlopen(url, timeout=120) as answer:
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
    assert 'http-equiv="refresh"' not in page
    assert "<progress" not in page
    # The page is generated at each request.
    (gaining.folder / "both-s2" / "metrics.json").unlink()
    page = fetched(served)
    assert "8 of 9 runs" in page
    # It reloads while runs are missing.
    assert 'http-equiv="refresh"' in page
    assert '<progress value="8" max="9"' in page


def test_the_index_lists_advices_with_their_sentences(served):
    _, folder = plant_advice(Path("runs/advice"), pairs=3, trials=2)
    page = fetched(served)
    assert "Put dropout 0.2 before the head and keep batch norm" in page
    link = "/advice/vision-builtin/advice.html"
    assert link not in page
    (folder / "advice.html").write_text("the page of the advice")
    assert f'<a href="{link}">vision-builtin</a>' in fetched(served)
    assert fetched(served + link) == "the page of the advice"
    content = json.loads((folder / "advice.json").read_text())
    (folder / "advice.json").write_text(json.dumps(content | {"recommendation": None}))
    assert "no recommendation yet" in fetched(served)
    (folder / "advice.json").write_text("[]")
    assert "cannot be read" in fetched(served)


def test_a_study_without_a_page_links_to_its_complete_runs(served, gaining):
    assert "/studies/vision-builtin/both-s1/metrics.json" not in fetched(served)
    (gaining.folder / "study.html").unlink()
    page = fetched(served)
    assert "make report STUDY=vision-builtin" in page
    link = "/studies/vision-builtin/both-s1/metrics.json"
    assert f'<a href="{link}">both-s1</a>' in page
    assert json.loads(fetched(served + link))["seed"] == 1


def test_a_broken_file_does_not_break_the_index(served, gaining):
    (gaining.folder / "none-s0" / "metrics.json").write_text("{")
    for name in ("sweeps/broken/trials.json", "vision-x/time/metrics.json"):
        file = Path("runs") / name
        file.parent.mkdir(parents=True)
        file.write_text("[]")
    page = fetched(served)
    assert "none-s0/metrics.json is not a valid result" in page
    assert page.count("cannot be read") == 2


def asked(served, path="/", method="GET", host=None):
    """Send a raw request that no browser would send; return status and body."""
    port = int(served.rsplit(":", 1)[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.putrequest(method, path, skip_host=True)
    for one in (f"127.0.0.1:{port}",) if host is None else host:
        connection.putheader("Host", one)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body


@pytest.mark.parametrize(
    "host",
    [["evil.example"], ["localhost.evil.example"], ["localhost@evil.example"], [], ["a", "b"]],
)
def test_another_host_gets_no_answer(served, host):
    for path in ("/", "/studies/vision-builtin/study.html", "/studies/"):
        for method in ("GET", "HEAD"):
            status, body = asked(served, path, method, host)
            assert status == 403
            assert "vision-builtin" not in body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1", "[::1]:8000"])
def test_this_machine_gets_an_answer_by_each_of_its_names(served, host):
    assert asked(served, host=[host])[0] == 200
    assert asked(served, "/?reload", host=[host]) == asked(served)
    assert asked(served, method="HEAD") == (200, "")


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/%2e%2e%2fsecret.txt"),
        *("/studies/../../secret.txt", "/studies/%2e%2e/%2e%2e/secret.txt", "//../secret.txt"),
        *("/out/secret.txt", "/out/", "/secret-link.txt", "/page/", "/loop", "/pipe", "/%00"),
        *("/..%5csecret.txt", "/%c0%ae%c0%ae/secret.txt", "/" + "x" * 5000, "http://x/secret.txt"),
    ],
)
def test_no_path_or_link_leads_out_of_the_runs(served, path):
    Path("secret.txt").write_text("secret")
    Path("outside").mkdir()
    Path("outside/secret.txt").write_text("secret")
    Path("runs/out").symlink_to(Path("outside").resolve())
    Path("runs/secret-link.txt").symlink_to("../secret.txt")
    Path("runs/page").mkdir()
    Path("runs/page/index.html").symlink_to("../../secret.txt")
    Path("runs/loop").symlink_to("loop")
    os.mkfifo("runs/pipe")
    status, body = asked(served, path)
    assert status in (301, 404)
    assert "secret" not in body.replace("secret.txt", "").replace("secret-link", "")
    assert asked(served)[0] == 200


def test_links_out_of_the_runs_are_not_in_the_index(served):
    away = Path("away/time")
    away.mkdir(parents=True)
    (away / "metrics.json").write_text(json.dumps(record(0, right(87, 100))))
    (away.parent / "study.yaml").write_text("name: secret")
    (away.parent / "trials.json").write_text("{}")
    for link in ("run", "studies/s", "sweeps/s"):
        Path("runs", link).parent.mkdir(exist_ok=True)
        Path("runs", link).symlink_to(away.parent.resolve())
    page = fetched(served)
    assert "87.00" not in page
    assert page.count("a link to outside this folder") == 3
    assert not (away.parent / "state.json").exists()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"name": 1, "test": 3}', "[" * 9000, "\xff", "null"]
)
def test_no_broken_file_of_a_run_breaks_the_index(served, gaining, content):
    for name in ("x/time/metrics.json", "sweeps/x/trials.json", "studies/x/study.yaml"):
        file = Path("runs") / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="latin-1")
    (gaining.folder / "none-s0" / "metrics.json").write_text(content, encoding="latin-1")
    Path("runs/y/time/metrics.json").mkdir(parents=True)
    Path("runs/z/time").mkdir(parents=True)
    Path("runs/z/time/metrics.json").symlink_to("nowhere")
    page = fetched(served)
    assert page.count("cannot be read: ") >= 2
    assert "vision-builtin" in page


def many_runs(planted, count):
    for number in range(count // 20):
        arms = {
            name: [record(s, right(50 + s, 100), name) for s in range(5)]
            for name in ("none", "dropout", "batchnorm", "both")
        }
        planted(arms, name=f"study {number}")


def test_the_first_page_of_500_runs_reads_few_files(planted, monkeypatch):
    many_runs(planted, 240)
    for number in range(260):
        folder = Path("runs/vision-x") / f"{number:04}"
        folder.mkdir(parents=True)
        parts = (f"{json.dumps(k)}: {json.dumps(v)}" for k, v in record(0, right(50, 100)).items())
        (folder / "metrics.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")
    whole = []
    read = Path.read_text

    def counted(self, *args, **options):
        whole.extend([self] if self.name == "metrics.json" else [])
        return read(self, *args, **options)

    monkeypatch.setattr(Path, "read_text", counted)
    # No study is cached yet: each request reads some, until all are cached.
    for unread in (9, 6, 3, 0, 0):
        page = dashboard.index(Path("runs"))
        assert len(whole) <= 60
        assert page.count("not read yet: reload this page") == unread
        assert page.count("50.00") == 260
        whole.clear()
    # After a new run, only its study is read again.
    (Path("runs/studies/study 3/none-s0/metrics.json")).unlink()
    assert "19 of 20 runs" in dashboard.index(Path("runs"))
    assert len(whole) == 19


def test_a_report_stores_the_state_of_its_study(gaining, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(report, "publish", lambda *_: None)
    report.main(["--study", gaining.name])
    monkeypatch.setattr(dashboard, "read_state", None)
    page = dashboard.index(Path("runs"))
    assert "Best is both: +12.00 points" in page
    assert "9 of 9 runs" in page


def test_names_from_outside_are_text_in_the_index(planted):
    evil = "<script>alert(1)</script>"
    planted({"none": [record(0, right(50, 100))]}, name=evil.replace("/", "_"))
    folder = Path("runs") / "<img src=x onerror=alert(1)>" / 'a"b'
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(record(0, right(50, 100), name=evil)))
    page = dashboard.index(Path("runs"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    for part in ("<script>", "<img", 'a"b'):
        assert part not in page


def test_a_port_that_is_taken_is_named(served):
    port = int(served.rsplit(":", 1)[1])
    with pytest.raises(InputError, match=f"PORT={port} cannot be used .* choose another PORT"):
        dashboard.serve(Path("runs"), port)
    with pytest.raises(InputError, match="PORT=99999"):
        dashboard.serve(Path("runs"), 99_999)
