"""The page: an input, and for each model its prediction, uncertainty and what it sees."""

import hashlib
import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Gradio reads it at import and then sends no telemetry.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from tasks.demonstration.examples import Example
from tasks.demonstration.explanation import comparison, facts, failure, uncertainty
from tasks.demonstration.model import Model
from tasks.demonstration.seen import seen
from tasks.errors import InputError

STYLE = Path(__file__).parent / "page.css"
# Fonts of the system, so that none is loaded; grey text with enough contrast.
THEME = gr.themes.Default(
    primary_hue="blue", font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")
).set(
    body_text_color_subdued="#5a6570",
    body_text_color_subdued_dark="#9aa6b2",
    button_primary_background_fill="*primary_600",
)
# The buttons of examples with a picture have no text; screen readers need a name.
SCRIPT = """() => {
  const name = () => document.querySelectorAll("#examples button").forEach((button, index) => {
    if (!button.textContent.trim()) button.setAttribute("aria-label", `Example ${index + 1}`);
  });
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
  name();
}"""
INPUTS = {"image": "an image", "audio": "a recording", "text": "a text"}
# Height of an uploaded image in pixels.
HEIGHT = 320
# Classes whose probabilities are shown.
TOP = 5
# Seconds between deletions of uploads, and the age at which they are deleted.
INTERVAL, KEPT = 600, 3600


def build_page(models: Sequence[Model], examples: Sequence[Example]) -> gr.Blocks:
    """Build the page of one model, or of two side by side.

    Args:
        models: The models.
        examples: Inputs to choose from.
    """
    kind = models[0].predictor.kind
    title = f"Classify {INPUTS[kind]}"
    truths = {digest(example.value, kind): example.label for example in examples}

    def classify(value: Any) -> list[Any]:
        return results(models, value, truths)

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(INTERVAL, KEPT)) as page:
        part(f"<h1>{title}</h1>")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                field = input_field(kind)
                button = gr.Button("Classify", variant="primary") if kind == "text" else None
                chosen = example_field(examples, field) if examples else None
            with gr.Column(scale=2 + len(models), min_width=300):
                outputs: list[Any] = [part(hint(kind))]
                with gr.Row():
                    for model in models:
                        with gr.Column(min_width=260):
                            if len(models) > 1:
                                part(f"<h2>{html.escape(model.title)}</h2>")
                            outputs.append(
                                gr.Label(
                                    label="Class probabilities", num_top_classes=TOP, visible=False
                                )
                            )
                            outputs += [part(), part()]
        options = {"fn": classify, "inputs": field, "outputs": outputs, "show_progress": "minimal"}
        if button is None:
            field.change(**options, api_name="classify")
        else:
            button.click(**options, api_name="classify")
            field.submit(**options, api_visibility="private")
            if chosen is not None:
                chosen.load_input_event.then(**options, api_visibility="private")
        part(f"<h2>{'The model' if len(models) == 1 else 'The models'}</h2>{facts(models)}")
    return page


def part(content: str = "") -> gr.HTML:
    """Return a part of the page in our own style."""
    return gr.HTML(content, apply_default_css=False, elem_classes="part")


def input_field(kind: str) -> Any:
    """Return the field for an image, a recording or a text."""
    if kind == "image":
        field: Any = gr.Image(
            label="Image",
            type="filepath",
            image_mode=None,
            sources=["upload", "clipboard"],
            buttons=[],
            height=HEIGHT,
            alt_text="The image to classify",
            elem_classes="upload",
        )
        # Of a file that is no image, Gradio's own method would not say what is wrong.
        field.preprocess = uploaded_file
        return field
    if kind == "audio":
        return gr.Audio(
            label="Recording", type="filepath", sources=["upload", "microphone"], buttons=[]
        )
    return gr.Textbox(label="Text", lines=4, max_lines=12, placeholder="Type or paste a text")


def uploaded_file(payload: Any) -> Any:
    """Return the path of an upload, as it is."""
    return None if payload is None else payload.path


def example_field(examples: Sequence[Example], field: Any) -> Any:
    """Return the examples to choose from."""
    is_sound = isinstance(field, gr.Audio)
    return gr.Examples(
        [example.value for example in examples],
        field,
        label="Examples from the test data",
        elem_id="examples",
        examples_per_page=len(examples),
        example_labels=[one.label for one in examples] if is_sound else None,
    )


def digest(value: str, kind: str) -> str:
    """Return a hash of a text, or of the content of a file."""
    # A text may be the name of a file of this machine, which is not read.
    content = value.encode() if kind == "text" else Path(value).read_bytes()
    return hashlib.sha256(content).hexdigest()


def hint(kind: str) -> str:
    """Say in HTML where the prediction will be."""
    return f"<p>The prediction for {INPUTS[kind]} is shown here.</p>"


def results(models: Sequence[Model], value: str | None, truths: dict[str, str]) -> list[Any]:
    """Return the content of the page's outputs for one input.

    Args:
        models: The models of the page.
        value: A file or a text; None or an empty text is no input.
        truths: The true class of each example, by the hash of its input.
    """
    kind = models[0].predictor.kind
    hidden = gr.update(value=None, visible=False)
    if not value:
        empty = (hidden, "", "") * len(models)
        return [hint(kind), *empty]
    predictions, parts = [], []
    for model in models:
        try:
            prediction, batch = model.classify(value)
        except InputError as error:
            parts += [hidden, failure(str(error)), ""]
            continue
        predictions.append(prediction)
        shown = f"<h3>What the model sees</h3>{seen(model.predictor, batch)}"
        bars = gr.update(value=prediction.probabilities, visible=True)
        parts += [bars, uncertainty(model, prediction), shown]
    truth = truths.get(digest(value, kind))
    known = "" if truth is None else f"<p>Test example of class <b>{html.escape(truth)}</b>.</p>"
    if len(predictions) == len(models) > 1:
        known += comparison(models, predictions)
    return [known, *parts]
