"""`make demo`: the page in a browser and through its API, and what it says of bad input."""

import math
import socket
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import torch
from gradio_client import Client, handle_file
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

import tasks
from tasks import demo
from tasks.demonstration import explanation, seen
from tasks.demonstration.model import Model, check_models, set_titles
from tasks.demonstration.page import build_page, digest, results
from tasks.errors import InputError
from tasks.inference.predictor import Prediction
from tasks.nlp.data import TextData
from tests.browser import chromium

# Enough passes that the result depends on them.
PASSES = 5
HOSTILE = "<i>${1+1}{{x}}"
RUNS = {
    "none": ("vision", "--model.arch=mlp", "--model.width=32"),
    "dropout": ("vision", "--model.arch=mlp", "--model.width=32"),
    "speech": ("speech", "--model.width=8"),
    "nlp": ("nlp", "--model.width=16", "--data.vocabulary=100"),
}
Run = Callable[[str], Path]


@pytest.fixture(scope="module")
def folders() -> dict[str, Path]:
    """The folders of the runs that the tests of this file share."""
    return {}


@pytest.fixture
def run(
    folders: dict[str, Path],
    small_data: Callable[..., Path],
    train: Callable[..., None],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Train a small model once, and return the folder of its run."""

    def of(name: str) -> Path:
        if name not in folders:
            task, *options = RUNS[name]
            data = "builtin" if task == "vision" else str(small_data(task))
            reg = name if task == "vision" else "dropout"
            folder = tmp_path_factory.mktemp(name)
            with monkeypatch.context() as there:
                there.chdir(folder)
                train(
                    *("--task", task, "--data", data, "--reg", reg, "--trainer.max_epochs=2"),
                    *("--data.batch_size=16", "--trainer.limit_train_batches=20", *options),
                )
            folders[name] = folder / "run"
        return folders[name]

    return of


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


class Servers:
    """The pages that are served, by the names of their runs, and the hosts that were asked for."""

    def __init__(self) -> None:
        self.pages: dict[tuple[str, ...], Any] = {}
        self.addresses: dict[tuple[str, ...], str] = {}
        self.hosts: set[Any] = set()


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The pages that the tests of this file share."""
    opened = Servers()
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def connected(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            opened.hosts.add(address[0])
        connect(self, address)

    def looked_up(host: Any, *rest: Any, **options: Any) -> Any:
        opened.hosts.add(host)
        return look_up(host, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connected)
        patch.setattr(socket, "getaddrinfo", looked_up)
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield opened
        for page in opened.pages.values():
            page.close(verbose=False)


@pytest.fixture
def address(
    servers: Servers, run: Run, caches: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., str]:
    """Serve the page of one or two runs once, and return its address."""

    def of(*names: str) -> str:
        if names not in servers.pages:
            ckpt = [str(run(name)) for name in names]
            options = Namespace(ckpt=ckpt, device="cpu", trust=[], mc=PASSES, cache_dir=str(caches))
            page = demo.open_page(options, tmp_path_factory.mktemp("examples"))
            servers.addresses[names] = demo.launch(page, "127.0.0.1", free_port())
            servers.pages[names] = page
        return servers.addresses[names]

    return of


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose requests all go to this machine, and that has no error."""
    opened = browser.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    local = ("http://127.0.0.1:", "data:", "blob:")
    opened.on(
        "request", lambda one: None if one.url.startswith(local) else problems.append(one.url)
    )
    yield opened
    opened.close()
    assert problems == []


@pytest.fixture
def photo() -> Path:
    """A photo of another size and mode than the training images, with EXIF orientation."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (7, 5, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.resize((50, 70), Image.Resampling.NEAREST).save("photo.jpg", exif=exif)
    return Path("photo.jpg").resolve()


def classified(address: str, value: Any) -> list[dict[str, Any]]:
    """Classify through the API; return the probabilities and the texts of each model."""
    parts = Client(address, verbose=False).predict(value, api_name="/classify")[1:]
    found = []
    for start in range(0, len(parts), 3):
        bars, text, shown = parts[start : start + 3]
        listed = bars["value"]["confidences"] if bars.get("value") else []
        probabilities = {one["label"]: one["confidence"] for one in listed}
        found.append({"probabilities": probabilities, "text": text, "seen": shown})
    return found


def check(found: dict[str, Any], expected: Prediction) -> None:
    """Compare what the page shows with a prediction."""
    top = sorted(expected.probabilities.values(), reverse=True)[:5]
    assert sorted(found["probabilities"].values(), reverse=True) == pytest.approx(top)
    assert max(found["probabilities"], key=found["probabilities"].get) == expected.label
    assert f"Entropy: {expected.entropy:.2f} nats" in found["text"]
    information = expected.mutual_information
    shown = "not known" if information is None else f"{information:.2f} nats"
    assert f"Mutual information: {shown}" in found["text"]
    assert ("Not sure" not in found["text"]) is expected.sure


def test_an_image_gets_the_predictions_of_both_models(
    address: Callable[..., str], run: Run, photo: Path
) -> None:
    plain, dropped = classified(address("none", "dropout"), handle_file(photo))
    check(plain, tasks.load(run("none"))(photo))
    check(dropped, tasks.load(run("dropout"))(photo, mc=PASSES))
    assert "8 x 8 pixels, grey" in plain["seen"]


def test_a_recording_gets_the_prediction_of_the_predictor(
    address: Callable[..., str], run: Run
) -> None:
    time = np.arange(22_050) / 44_100
    tone = 0.5 * np.sin(2 * np.pi * 900 * time)
    soundfile.write("tone.mp3", np.stack([tone, tone], 1), 44_100)
    [found] = classified(address("speech"), handle_file(Path("tone.mp3").resolve()))
    check(found, tasks.load(run("speech"))("tone.mp3", mc=PASSES))
    assert "0.50 s at 16,000 Hz" in found["seen"]


def test_a_text_gets_the_prediction_of_the_predictor(address: Callable[..., str], run: Run) -> None:
    [found] = classified(address("nlp"), "Schöne grüne red three")
    check(found, tasks.load(run("nlp"))("Schöne grüne red three", mc=PASSES))
    assert ">red</span>" in found["seen"]
    assert 'unknown">[UNK]</span>' in found["seen"]


def test_the_page_in_a_browser(
    address: Callable[..., str], run: Run, photo: Path, page: Page
) -> None:
    page.goto(address("none", "dropout"))
    expect(page).to_have_title("Classify an image")
    for title in ("REG=none", "REG=dropout"):
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    page.locator("input[type=file]").set_input_files(photo)
    entropies = page.locator("dt", has_text="Entropy")
    expect(entropies).to_have_count(2)
    expected = tasks.load(run("dropout"))(photo, mc=PASSES)
    expect(entropies.nth(1)).to_have_text(f"Entropy: {expected.entropy:.2f} nats")
    small = page.get_by_role("img", name="The picture in this size").first
    assert small.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [8, 8]
    # An example of the builtin test data, of which the class is known.
    page.get_by_role("button", name="Example 1").click()
    expect(page.get_by_text("Test example of class")).to_be_visible()
    table = page.get_by_role("table")
    expect(table.get_by_role("row", name="Test accuracy")).to_contain_text("%")


def test_no_connection_leaves_this_machine(
    address: Callable[..., str], servers: Servers, page: Page
) -> None:
    # The requests of the browser are checked by its fixture.
    page.goto(address("nlp"))
    page.get_by_role("textbox", name="Text").fill("red one")
    page.get_by_role("button", name="Classify").click()
    expect(page.locator("dt", has_text="Mutual information")).to_be_visible()
    assert servers.hosts == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("notes.png", b"no image", "it is no image"),
        ("photo.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no image"),
    ],
)
def test_a_bad_image_is_a_message_and_the_server_goes_on(
    name: str, content: bytes, reason: str, address: Callable[..., str], photo: Path
) -> None:
    Path(name).write_bytes(content)
    for found in classified(address("none", "dropout"), handle_file(Path(name).resolve())):
        assert f"Not classified:</strong> {reason}" in found["text"]
        assert not found["probabilities"]
        assert not found["seen"]
    assert classified(address("none", "dropout"), handle_file(photo))[0]["probabilities"]


@pytest.mark.parametrize(
    ("seconds", "reason"), [(0, "it holds no samples"), (61, "it lasts 61 s, more than")]
)
def test_a_bad_recording_is_a_message(
    seconds: int, reason: str, address: Callable[..., str]
) -> None:
    soundfile.write("bad.wav", np.zeros(8000 * seconds), 8000)
    [found] = classified(address("speech"), handle_file(Path("bad.wav").resolve()))
    assert f"Not classified:</strong> {reason}" in found["text"]


def test_a_blank_text_is_a_message(address: Callable[..., str]) -> None:
    [found] = classified(address("nlp"), "  ")
    assert "Not classified:</strong> the text is empty" in found["text"]


@pytest.mark.parametrize("uploaded", [True, False])
def test_only_uploaded_files_are_read(
    uploaded: bool, address: Callable[..., str], photo: Path
) -> None:
    url = f"{address('none', 'dropout')}gradio_api"
    path = str(photo)
    if uploaded:
        sent = httpx.post(f"{url}/upload", files={"files": photo.read_bytes()})
        [path] = sent.json()
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}]
    event = httpx.post(f"{url}/call/classify", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{url}/call/classify/{event}", timeout=120).text
    assert ("event: complete" in answer) is uploaded
    assert ("Entropy" in answer) is uploaded


def model_of(run: Path, passes: int = PASSES) -> Model:
    return Model.of(tasks.load(run), str(run), passes)


def test_names_of_classes_are_no_markup(run: Run, page: Page) -> None:
    models = [model_of(run("nlp")), model_of(run("nlp"))]
    names = [HOSTILE, f"{HOSTILE}2", f"{HOSTILE}3"]
    for model in models:
        model.predictor.classes = names
    set_titles(models)
    assert [model.title.endswith(f"({number})") for number, model in enumerate(models, 1)]
    built = build_page(models, [])
    try:
        page.goto(demo.launch(built, "127.0.0.1", free_port()))
        page.get_by_role("textbox", name="Text").fill("red")
        page.get_by_role("button", name="Classify").click()
        said = page.locator("p", has_text="The models agree")
        expect(said).to_contain_text(f"The models agree: {HOSTILE}")
    finally:
        built.close(verbose=False)


def test_uploads_are_deleted_at_the_end(
    run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(Path("uploads").resolve()))
    built = build_page([model_of(run("none"))], [])
    classified(demo.launch(built, "127.0.0.1", free_port()), handle_file(photo))
    assert list(Path("uploads").rglob("photo.jpg"))
    built.close(verbose=False)
    assert not list(Path("uploads").rglob("photo.jpg"))


def prediction(model: Model, *values: float, entropy: float = 0.5, sure: bool = True) -> Prediction:
    probabilities = dict(zip(model.predictor.classes, values, strict=False))
    label = max(probabilities, key=probabilities.__getitem__)
    return Prediction(label, probabilities[label], probabilities, entropy, None, sure)


def fake(title: str = "", threshold: float = 1.0, **facts: Any) -> Any:
    predictor = SimpleNamespace(
        classes=["a", "b", "c"], kind="text", threshold=threshold, facts=facts, task=torch.nn.ReLU()
    )
    return Model(predictor, f"{title}.ckpt", 0, title)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("threshold", "sure", "said"),
    [
        (0.7, True, "Sure.</strong> The entropy is at most 0.70 nats"),
        (0.2, False, "Not sure.</strong> The entropy is above 0.20 nats"),
        (math.inf, True, "no threshold"),
        # If all validation examples were wrong.
        (-1.0, False, "above 0.00 nats"),
    ],
)
def test_the_verdict_follows_the_threshold(threshold: float, sure: bool, said: str) -> None:
    model = fake(threshold=threshold)
    text = explanation.uncertainty(model, prediction(model, 0.8, 0.1, 0.1, sure=sure))
    assert said in text
    # ln 3.
    assert "1.10 is no preference among 3 classes" in text


def test_a_comparison_names_the_widest_difference() -> None:
    models = [fake("REG=none"), fake("REG=both")]
    first = prediction(models[0], 0.5, 0.4, 0.1)
    second = prediction(models[1], 0.3, 0.6, 0.1)
    text = explanation.comparison(models, [first, second])
    assert "REG=none predicts <b>a</b>, REG=both predicts <b>b</b>" in text
    assert "class <b>a</b>: 50.0 % and 30.0 %" in text
    text = explanation.comparison(models, [first, first])
    assert "The models agree: <b>a</b>" in text


def test_titles_are_the_shortest_that_differ() -> None:
    pair = [fake(reg="none", seed=0), fake(reg="both", seed=1)]
    set_titles(pair)
    assert [model.title for model in pair] == ["REG=none", "REG=both"]
    pair = [fake(reg="both", seed=0), fake(reg="both", seed=1)]
    set_titles(pair)
    assert [model.title for model in pair] == ["REG=both, SEED=0", "REG=both, SEED=1"]
    pair = [fake("first", reg="both", seed=0), fake("second", reg="both", seed=0)]
    set_titles(pair)
    assert [model.title for model in pair] == ["first.ckpt", "second.ckpt"]


def test_nothing_is_shown_without_an_input() -> None:
    said, bars, text, shown = results([fake()], None, {})
    assert "is shown here" in said
    assert bars["visible"] is False
    assert text == shown == ""


def test_a_text_is_not_read_as_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("secret")
    assert digest(str(file), "text") != digest(str(file), "image") == digest("secret", "text")
    # Longer than any name of a file.
    assert digest("/" + 300 * "a", "text")


def test_tokens_are_explained() -> None:
    data = TextData()
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "red": 2, "##s": 3, "<b>": 4}
    data.tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    data.unknown = 1
    text = seen.tokens(data, torch.tensor([2, 3, 4]))
    assert "<figcaption>3 tokens; ## continues a word</figcaption>" in text
    assert "&lt;b&gt;" in text
    data.tokenizer.enable_truncation(2)
    text = seen.tokens(data, torch.tensor([2, 1]))
    assert "2 tokens, the most that the model reads" in text
    assert "1 unknown" in text


def test_a_spectrogram_has_low_frequencies_at_the_bottom() -> None:
    energies = torch.zeros(40, 50)
    energies[3] = 1.0
    drawn = np.array(seen.coloured(energies).convert("L"))
    assert drawn.shape == (40, 50)
    assert drawn.mean(1).argmax() == 36
    # Silence has no range.
    assert np.ptp(np.array(seen.coloured(torch.zeros(2, 3)))[:, :, 0]) == 0


def test_a_waveform_reaches_as_high_as_its_samples() -> None:
    samples = torch.zeros(6400)
    samples[3200] = 0.5
    drawn = np.array(seen.waveform(samples).convert("L"))
    bright = drawn > drawn.min()
    assert bright[:60, 320].all()
    assert bright[:, 0].sum() <= 3


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command line, which must fail, and return its one-line error."""
    with pytest.raises(SystemExit) as stopped:
        demo.main(list(arguments))
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def test_checkpoints_that_cannot_be_compared_are_refused(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("--ckpt", str(run("speech")), str(run("nlp")))
    assert "cannot be compared: one takes audio, the other text" in refused(capsys, *both)
    other = fake()
    other.predictor.classes = ["a", "b", "d"]
    with pytest.raises(InputError, match="only one of them has the classes c, d"):
        check_models([fake(), other])
    with pytest.raises(InputError, match="2 checkpoints, not 3"):
        check_models([fake()] * 3)


def test_a_kind_without_a_field_is_refused(run: Run) -> None:
    predictor = tasks.load(run("nlp"))
    predictor.kind = "row"
    with pytest.raises(InputError, match="inputs of the kind 'row'; the demo takes image, audio"):
        Model.of(predictor, "rows.ckpt", 0)


def test_a_missing_checkpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "CKPT is missing" in refused(capsys)


def test_a_missing_gradio_is_named_with_the_fix(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    said = refused(capsys, "--ckpt", str(run("none")))
    assert said == "error: make demo needs Gradio: .venv/bin/pip install -e '.[demo]'"


@pytest.mark.parametrize("port", [None, 0, 70_000])
def test_a_port_that_cannot_be_used_is_named(
    port: int | None, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1] if port is None else port
        said = refused(capsys, "--ckpt", str(run("nlp")), "--port", str(port))
    assert said.startswith(f"error: PORT={port} ")
    assert said.endswith("choose another PORT")


class Interrupted:
    """An event; Ctrl-C is pressed while it is waited for."""

    def wait(self) -> None:
        raise KeyboardInterrupt


def test_a_host_that_does_not_exist_is_named(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--ckpt", str(run("nlp")), "--port", str(free_port()))
    said = refused(capsys, *arguments, "--host", "192.0.2.1")
    assert "on 192.0.2.1 cannot be used (" in said


def test_ctrl_c_ends_the_server_quietly(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, port = run("nlp"), free_port()
    capsys.readouterr()
    monkeypatch.setattr(demo, "threading", SimpleNamespace(Event=Interrupted))
    demo.main(["--ckpt", str(folder), "--port", str(port)])
    written = capsys.readouterr()
    assert written.out == f"demo: http://127.0.0.1:{port}/ (Ctrl-C to stop)\n"
    assert written.err == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
