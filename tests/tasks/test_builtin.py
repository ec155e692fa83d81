import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from tasks.nlp import builtin as nlp
from tasks.speech import builtin as speech
from tasks.vision.data import VisionData

SPLITS = ("train", "validation", "test")

# Program for another process: it prints a digest of the clips of each split and one of all texts.
PRINT_DIGESTS = """
import hashlib, json
from tasks.speech import builtin as speech
speech.TAKES = 1
clips = speech.synthesize()
from tasks.nlp.builtin import names
sums = {split: hashlib.sha256(b"".join(c.tobytes() for c in clips[split][0])).hexdigest()
        for split in clips}
sums["texts"] = hashlib.sha256(json.dumps(names()).encode()).hexdigest()
print(json.dumps(sums))
"""


@pytest.fixture(scope="module")
def elsewhere():
    # Another hash seed reveals a dependence on the order of a set.
    other = os.environ | {"PYTHONHASHSEED": "123"}
    return subprocess.Popen(
        [sys.executable, "-c", PRINT_DIGESTS], env=other, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def clips(elsewhere):
    # One take per word and voice, to save time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "TAKES", 1)
        return speech.synthesize()


@pytest.fixture(scope="module")
def texts():
    return nlp.names()


def test_clips_and_texts_are_the_same_in_every_process(elsewhere, clips, texts):
    printed, _ = elsewhere.communicate()
    wanted = {
        split: hashlib.sha256(b"".join(clip.tobytes() for clip in clips[split][0])).hexdigest()
        for split in SPLITS
    }
    wanted["texts"] = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    assert json.loads(printed) == wanted


def test_no_voice_is_in_two_splits():
    spoken = {split: [voice.split("+")[1] for voice in speech.SPLITS[split]] for split in SPLITS}
    together = [variant for split in SPLITS for variant in spoken[split]]
    assert len(set(together)) == len(together) > 20


def test_every_voice_says_every_word(clips):
    for split in SPLITS:
        waves, labels = clips[split]
        assert len(waves) == len(labels) == len(speech.SPLITS[split]) * len(speech.KEYWORDS)
        assert set(Counter(labels).values()) == {len(speech.SPLITS[split])}


def test_clips_are_words_in_noise(clips):
    waves = [wave for split in SPLITS for wave in clips[split][0]]
    assert {wave.dtype for wave in waves} == {np.dtype(np.int16)}
    seconds = [len(wave) / speech.SAMPLE_RATE for wave in waves]
    assert min(seconds) >= 0.3
    assert max(seconds) <= 1.2
    assert max(seconds) - min(seconds) > 0.3
    peaks = [np.abs(wave.astype(float)).max() / 32767 for wave in waves]
    assert 0.09 < min(peaks) < 0.2
    assert 0.6 < max(peaks) < 0.8
    assert len({wave.tobytes() for wave in waves}) == len(waves)
    for wave in waves:
        windows = wave[: len(wave) // 400 * 400].astype(float).reshape(-1, 400)
        loudness = np.sqrt((windows**2).mean(axis=1))
        # The word is louder than its surroundings, which are noise and not digital silence.
        assert loudness.max() > 1.5 * loudness.min() > 0


def test_an_unknown_voice_is_refused():
    # espeak itself would use another voice, perhaps one of another split.
    with pytest.raises(ValueError, match=r"no voice 'en-us\+nobody'"):
        speech._espeak()("yes", "en-us+nobody", 170, 50, 1)


def test_texts_are_balanced_over_the_languages(texts):
    for split, size in nlp.SIZES.items():
        lines, labels = texts[split]
        assert len(lines) == len(labels)
        assert Counter(labels) == dict.fromkeys(range(len(nlp.LANGUAGES)), size)


def test_no_text_and_no_name_is_in_two_splits(texts):
    # A name may contain a comma: check every possible split into two names.
    parts = {}
    for split in SPLITS:
        lines = {text.casefold() for text in texts[split][0]}
        assert len(lines) == len(texts[split][0])
        parts[split] = lines | {
            name for line in lines for name in line.split(", ") if line.count(", ") == 1
        }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not parts[one] & parts[other]


def test_no_name_is_in_two_languages(texts):
    languages = {}
    for split in SPLITS:
        for text, label in zip(*texts[split], strict=True):
            for name in text.casefold().split(", ") if text.count(", ") == 1 else []:
                assert languages.setdefault(name, label) == label


def test_callers_cannot_change_the_texts_of_each_other(texts):
    nlp.names()["train"][0].clear()
    assert nlp.names() == texts


def test_the_second_half_of_the_digits_is_the_test(tmp_path):
    data = VisionData(cache_dir=str(tmp_path))
    data.setup()
    digits = load_digits()
    pixels = torch.from_numpy((digits.images * 255 / 16).round()).byte().unsqueeze(1)
    labels = torch.from_numpy(digits.target)
    test = data.splits["test"].gather(torch.arange(len(data.splits["test"])))
    assert torch.equal(test.inputs, pixels[898:])
    assert torch.equal(test.labels, labels[898:])
    used = torch.cat([data.splits[split].chosen for split in ("train", "validation")])
    assert sorted(used.tolist()) == list(range(898))
    for split in ("train", "validation"):
        part = data.splits[split]
        batch = part.gather(torch.arange(len(part)))
        assert torch.equal(batch.inputs, pixels[part.chosen])
        assert torch.equal(batch.labels, labels[part.chosen])
    assert data.classes == [str(digit) for digit in range(10)]
