"""What a prediction means, in sentences: how sure the model is, and where two models differ."""

import html
import math
from collections.abc import Sequence

from regain.montecarlo import has_dropout
from tasks.demonstration.model import Model
from tasks.inference.predictor import Prediction


def uncertainty(model: Model, prediction: Prediction) -> str:
    """Explain in HTML how sure the model is of a prediction."""
    most = math.log(max(2, len(prediction.probabilities)))
    threshold, entropy = model.threshold, prediction.entropy
    if math.isinf(threshold):
        verdict = "The checkpoint has no threshold above which a prediction is not sure."
        kind = "unknown"
    elif prediction.sure:
        verdict = (
            f"<strong>Sure.</strong> The entropy is at most {max(0.0, threshold):.2f} nats, "
            "the threshold chosen on validation data."
        )
        kind = "sure"
    else:
        verdict = (
            f"<strong>Not sure.</strong> The entropy is above {max(0.0, threshold):.2f} nats, "
            "the threshold chosen on validation data: the class may well be wrong."
        )
        kind = "unsure"
    rows = [
        (
            "Entropy",
            f"{entropy:.2f} nats",
            f"The total uncertainty: 0 is certain, {most:.2f} is no preference among "
            f"{len(prediction.probabilities)} classes.",
        )
    ]
    information = prediction.mutual_information
    if information is None:
        off = has_dropout(model.predictor.task)
        reason = "Monte Carlo dropout is off." if off else "The model has no dropout."
        rows.append(("Mutual information", "not known", reason))
    else:
        rows.append(
            (
                "Mutual information",
                f"{information:.2f} nats",
                f"How much {model.passes} passes with dropout disagree. More training data could "
                "reduce this part of the entropy; the rest comes from the input itself.",
            )
        )
    listed = "".join(f"<dt>{name}: {value}</dt><dd>{meaning}</dd>" for name, value, meaning in rows)
    return f'<p class="verdict {kind}">{verdict}</p><dl>{listed}</dl>'


def comparison(models: Sequence[Model], predictions: Sequence[Prediction]) -> str:
    """Say in HTML whether two models agree, and in which class they differ most."""
    first, second = predictions
    names = [html.escape(model.title) for model in models]
    classes = models[0].predictor.classes
    gaps = {one: abs(first.probabilities[one] - second.probabilities[one]) for one in classes}
    widest = max(classes, key=gaps.__getitem__)
    shown = [f"{100 * one.probabilities[widest]:.1f} %" for one in predictions]
    if first.label == second.label:
        agreement = f"The models agree: <b>{html.escape(first.label)}</b>."
    else:
        said = [
            f"{name} predicts <b>{html.escape(one.label)}</b>"
            for name, one in zip(names, predictions, strict=True)
        ]
        agreement = f"The models differ: {said[0]}, {said[1]}."
    return (
        f"<p>{agreement} Their probabilities differ most for class <b>{html.escape(widest)}</b>: "
        f"{shown[0]} and {shown[1]}.</p>"
    )


def failure(reason: str) -> str:
    """Say in HTML that an input cannot be classified."""
    return f'<p class="verdict failed"><strong>Not classified:</strong> {html.escape(reason)}.</p>'


def facts(models: Sequence[Model]) -> str:
    """Return a table in HTML with information on the models."""
    known = [model.facts() for model in models]
    names = list(dict.fromkeys(name for one in known for name in one))
    head = ""
    if len(models) > 1:
        titles = "".join(f'<th scope="col">{html.escape(model.title)}</th>' for model in models)
        head = f"<thead><tr><td></td>{titles}</tr></thead>"
    rows = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(f"<td>{html.escape(one.get(name, 'not known'))}</td>" for one in known)
        + "</tr>"
        for name in names
    )
    return f'<table class="facts">{head}<tbody>{rows}</tbody></table>'
