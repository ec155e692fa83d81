import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regain import AudioAugmentation, ImageAugmentation, TextAugmentation, word_dropout
from regain.augment import (
    add_noise,
    alternating_flip,
    mask_stripe,
    random_crop,
    random_flip,
    time_shift,
    word_swap,
)
from regain.mixing import cutmix, cutout, mixup

by_example = settings(deadline=None, derandomize=True, max_examples=50)


def numbered(batch, channels, height, width, dtype=torch.float64):
    """Images with distinct pixels in each channel."""
    # A fraction that float32 cannot represent, if the type can.
    start = 1 / 3 if dtype.is_floating_point else 0
    pixels = torch.arange(channels * height * width) + torch.tensor(start, dtype=torch.float64)
    return pixels.view(1, channels, height, width).repeat(batch, 1, 1, 1).to(dtype)


def one_hot_images(batch, height, width):
    """Image i is one in channel i and zero elsewhere: channel means are mixing weights."""
    return torch.eye(batch)[:, :, None, None].repeat(1, 1, height, width)


def reflected(position, size):
    """Reflect a position outside the image at the border pixel."""
    if position < 0:
        return -position
    return 2 * (size - 1) - position if position >= size else position


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_crop_is_a_window_of_the_reflected_image(padding, dtype):
    height, width = 6, 7
    images = numbered(1500, 3, height, width, dtype)
    before = images.clone()
    out = random_crop(images, padding)
    assert out.dtype == dtype
    assert out.shape == images.shape
    assert torch.equal(images, before)
    windows = set()
    for image, crop in zip(images[:100].tolist(), out[:100].tolist(), strict=True):
        offsets = [
            (down, right)
            for down in range(-padding, padding + 1)
            for right in range(-padding, padding + 1)
            if all(
                crop[channel][y][x]
                == image[channel][reflected(y + down, height)][reflected(x + right, width)]
                for channel in range(3)
                for y in range(height)
                for x in range(width)
            )
        ]
        assert len(offsets) == 1
        windows.add(offsets[0])
    # All images are equal, so that crops differ only by their window; each window must occur.
    assert len(out.flatten(1).unique(dim=0)) == (2 * padding + 1) ** 2
    assert len(windows) > 1 or padding == 0


def test_crop_takes_each_image_from_itself():
    images = torch.arange(50.0).view(50, 1, 1, 1).expand(50, 2, 4, 4)
    assert torch.equal(random_crop(images, 2), images)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_flip_reverses_whole_images_at_rate_p(p, assert_rate):
    images = torch.arange(3.0).expand(3_300_000, 1, 1, 3)
    out = random_flip(images, p)
    flipped = out[:, 0, 0, 0] == 2
    assert_rate(flipped, p)
    assert torch.equal(out[flipped], images[flipped].flip(-1))
    assert torch.equal(out[~flipped], images[~flipped])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_flipped_images_are_exact(dtype):
    images = numbered(40, 3, 4, 5, dtype) + torch.arange(40, dtype=dtype).view(40, 1, 1, 1)
    before = images.clone()
    out = random_flip(images)
    assert out.dtype == dtype
    kinds = set()
    for image, result in zip(images, out, strict=True):
        mirror = torch.stack([image[:, :, 4 - x] for x in range(5)], dim=2)
        assert torch.equal(result, image) or torch.equal(result, mirror)
        kinds.add(torch.equal(result, mirror))
    assert kinds == {True, False}
    assert torch.equal(images, before)
    assert torch.equal(random_flip(images, 0.0), images)


def squares(size, height, width):
    """The part of the image that a square around each pixel covers."""
    covers = set()
    for y in range(height):
        for x in range(width):
            top, left = y - size // 2, x - size // 2
            covers.add(
                tuple(
                    top <= row < top + size and left <= column < left + size
                    for row in range(height)
                    for column in range(width)
                )
            )
    return covers


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_cutout_fills_one_square_with_the_mean_colour(size):
    images = torch.rand(1000, 3, 4, 6, dtype=torch.float32)
    before = images.clone()
    out = cutout(images, size)
    assert torch.equal(images, before)
    painted = out != images
    assert torch.equal(painted, painted[:, :1].expand_as(painted))
    assert {tuple(cover) for cover in painted[:, 0].flatten(1).tolist()} == squares(size, 4, 6)
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(out[painted], mean[painted])


def test_cutout_of_bytes_is_right_to_one_step():
    images = torch.randint(0, 256, (50, 3, 4, 6), dtype=torch.uint8)
    out = cutout(images, 2)
    assert out.dtype == torch.uint8
    mean = images.double().mean(dim=(2, 3), keepdim=True)
    assert ((out == images) | ((out - mean).abs() <= 1)).all()


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixed_targets_are_the_fractions_of_the_pixels(mix, alpha):
    images, classes = one_hot_images(8, 5, 6), torch.eye(8)
    before = images.clone()
    mixed_some = False
    for _ in range(50):
        out, targets = mix(images, classes, alpha)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
        torch.testing.assert_close(targets, out.mean(dim=(2, 3)))
        assert ((targets > 0).sum(dim=1) <= 2).all()
        assert (targets >= 0).all()
        mixed_some |= not torch.equal(targets, classes)
    assert mixed_some
    assert torch.equal(images, before)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixed_targets_may_be_mixed_before(mix):
    classes = torch.rand(8, 3).softmax(dim=1)
    _, targets = mix(torch.rand(8, 1, 5, 6), classes, 1.0)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    assert not torch.equal(targets, classes)


def test_mixup_blends_every_pixel_with_one_weight():
    images = one_hot_images(8, 5, 6)
    out, targets = mixup(images, torch.eye(8), 1.0)
    assert torch.equal(out, out[:, :, :1, :1].expand_as(out))
    partner = targets.masked_fill(torch.eye(8).bool(), 0).sum(dim=1)
    # All images that are not mixed with themselves have the same proportion.
    fractions = partner[partner > 0]
    assert len(fractions) > 1
    torch.testing.assert_close(fractions, fractions[:1].expand_as(fractions))


def test_mixup_blends_bytes_without_overflow():
    images = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    out, _ = mixup(images, torch.eye(4), 1.0)
    assert out.is_floating_point()
    torch.testing.assert_close(out, images.float())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_weight_follows_its_beta_distribution(alpha):
    images, classes = one_hot_images(8, 1, 1), torch.eye(8)
    # A permutation of eight is almost never the identity; if it is, the weight is 1.
    draws = [mixup(images, classes, alpha)[1].diagonal().min() for _ in range(3000)]
    fractions = torch.stack(draws)
    variance = 1 / (4 * (2 * alpha + 1))
    assert fractions.mean().item() == pytest.approx(0.5, abs=3 * math.sqrt(variance / 3000))
    assert fractions.var().item() == pytest.approx(variance, rel=0.1)


def test_cutmix_pastes_a_box_from_the_same_position_of_another_image():
    batch, height, width = 300, 6, 7
    # Hundreds encode the image, the rest the position.
    indices = torch.arange(height * width).view(1, 1, height, width)
    images = 100 * torch.arange(batch).view(-1, 1, 1, 1) + indices.expand(1, 2, height, width)
    boxes = set()
    while len(boxes) < 2:  # Until a fraction was drawn that pastes anything at all.
        out, _ = cutmix(images, torch.eye(batch), 1.0)
        assert torch.equal(out % 100, images % 100)
        source = out // 100
        assert torch.equal(source[:, 0], source[:, 1])
        for number, image in enumerate(source[:, 0]):
            pasted = image != number
            assert len(image[pasted].unique()) <= 1
            rows, columns = pasted.any(dim=1), pasted.any(dim=0)
            # The box is filled, and its rows and columns are contiguous.
            assert torch.equal(pasted, rows[:, None] & columns)
            assert (rows.int().diff() == 1).sum() <= 1
            assert (columns.int().diff() == 1).sum() <= 1
            boxes.add(tuple(pasted.flatten().tolist()))
    assert len(boxes) > 10


@pytest.mark.parametrize(("fraction", "rows", "columns"), [(0.75, 4, 6), (0.0, 8, 12), (1.0, 0, 0)])
def test_cutmix_box_has_the_area_that_was_drawn(monkeypatch, fraction, rows, columns):
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(fraction))
    images = torch.arange(500.0).view(-1, 1, 1, 1).expand(-1, 1, 8, 12)
    out, targets = cutmix(images, torch.eye(500), 1.0)
    pasted = (out != images)[:, 0]
    # The border cuts boxes; the largest of 500 is complete.
    assert pasted.any(dim=2).sum(dim=1).max() == rows
    assert pasted.any(dim=1).sum(dim=1).max() == columns
    partner = targets.masked_fill(torch.eye(500).bool(), 0).sum(dim=1)
    torch.testing.assert_close(partner, pasted.float().mean(dim=(1, 2)))


@by_example
@given(
    most=st.integers(0, 12),
    samples=st.integers(1, 10),
    lengths=st.none() | st.lists(st.integers(0, 10), min_size=4, max_size=4),
    dtype=st.sampled_from([torch.int16, torch.float32]),
    seed=st.integers(0, 2**31),
)
def test_time_shift_moves_clips_and_pads_with_silence(most, samples, lengths, dtype, seed):
    torch.manual_seed(seed)
    # The padding is not silent, to detect that it is used.
    waveforms = torch.arange(1, 4 * samples + 1, dtype=dtype).view(4, samples)
    before = waveforms.clone()
    ends = [samples] * 4 if lengths is None else [min(length, samples) for length in lengths]
    out = time_shift(waveforms, most, None if lengths is None else torch.tensor(ends))
    assert out.dtype == dtype
    for clip, end, result in zip(waveforms.tolist(), ends, out.tolist(), strict=True):
        assert result in [
            [
                clip[time - shift] if time < end and 0 <= time - shift < end else 0
                for time in range(samples)
            ]
            for shift in range(-most, most + 1)
        ]
    assert torch.equal(waveforms, before)


def test_time_shift_draws_every_shift_for_each_clip():
    impulse = torch.zeros(2000, 9)
    impulse[:, 4] = 1
    moved = time_shift(impulse, limit=2).argmax(dim=1).bincount(minlength=9)
    assert (moved > 0).tolist() == [False, False, True, True, True, True, True, False, False]
    # 400 of each are expected, with a standard deviation of 18.
    assert (moved[2:7] - 400).abs().max() < 72


def noise_levels(waveforms, most, lengths=None):
    """Root mean square of the noise of each clip, relative to that of the clip."""
    ends = [waveforms.shape[1]] * len(waveforms) if lengths is None else lengths.tolist()
    noise = add_noise(waveforms, most, lengths) - waveforms
    return torch.stack(
        [
            added[:end].square().mean().sqrt() / clip[:end].square().mean().sqrt()
            for added, clip, end in zip(noise, waveforms, ends, strict=True)
        ]
    )


@pytest.mark.parametrize("padded", [False, True])
def test_noise_level_is_uniform_up_to_its_bound(padded):
    waveforms = torch.randn(500, 4000, dtype=torch.float64)
    # Clips of different loudness: the noise is relative to the clip.
    waveforms *= torch.logspace(-2, 2, 500, dtype=torch.float64).unsqueeze(1)
    lengths = None
    if padded:
        lengths = torch.full((500,), 1000)
        waveforms[:, 1000:] = 0
    levels = noise_levels(waveforms, 0.3, lengths)
    # 1000 samples determine a level to 2.2 %; the largest of 500 is just below the bound.
    assert 0.3 * 0.95 < levels.max() < 0.3 * 1.08
    assert levels.min() < 0.3 * 0.05
    assert levels.mean().item() == pytest.approx(0.15, rel=0.08)


def test_noise_is_white_and_differs_between_clips(assert_independent):
    waveforms = torch.ones(2, 20_000)
    noise = add_noise(waveforms, 0.5) - waveforms
    assert_independent(noise[0], 0)
    assert_independent(noise / noise.std(dim=1, keepdim=True), 0)
    assert noise.mean().abs() < 0.01


def test_padding_and_silence_get_no_noise():
    lengths = torch.tensor([50, 20, 1, 0])
    padded = torch.arange(50) >= lengths[:, None]
    waveforms = torch.randn(4, 50).masked_fill(padded, 0.0)
    before = waveforms.clone()
    out = add_noise(waveforms, 0.5, lengths)
    assert (out[padded] == 0).all()
    assert (out != waveforms)[:3].any(dim=1).all()
    assert torch.equal(waveforms, before)
    assert torch.equal(add_noise(torch.zeros(2, 50), 0.5), torch.zeros(2, 50))
    assert torch.equal(add_noise(before, 0.0, lengths), before)


@by_example
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)),
    channels=st.booleans(),
    widest=st.integers(0, 12),
    dim=st.sampled_from([-1, -2]),
    seed=st.integers(0, 2**31),
)
def test_stripe_is_zero_and_not_wider_than_the_limit(shape, channels, widest, dim, seed):
    torch.manual_seed(seed)
    spectrograms = torch.rand(shape) + 1
    if channels:
        spectrograms = spectrograms.unsqueeze(1).repeat(1, 2, 1, 1)
    before = spectrograms.clone()
    out = mask_stripe(spectrograms, widest, dim)
    assert torch.equal(spectrograms, before)
    silent = out == 0
    assert torch.equal(out[~silent], spectrograms[~silent])
    for example in silent:
        bins = example.movedim(dim, 0).flatten(1)
        # The stripe spans the other dimensions, and is contiguous along its own.
        assert torch.equal(bins, bins[:, :1].expand_as(bins))
        run = bins[:, 0].int()
        assert run.sum() <= min(widest, len(run))
        assert (run.diff() == 1).sum() + run[0] <= 1


@pytest.mark.parametrize("dim", [-1, -2])
def test_stripe_has_every_width_and_position(dim):
    bins = 7 if dim == -1 else 5
    silent = mask_stripe(torch.ones(4000, 5, 7), 3, dim).movedim(dim, 1)[:, :, 0] == 0
    widths = silent.sum(dim=1)
    # 1000 of each width are expected, with a standard deviation of 27.
    assert (widths.bincount() - 1000).abs().max() < 110
    for width in (1, 2, 3):
        starts = silent[widths == width].int().argmax(dim=1).bincount(minlength=bins)
        assert (starts > 0).tolist() == [start <= bins - width for start in range(bins)]


@by_example
@given(
    p=st.floats(0.0, 0.99),
    fraction=st.sampled_from([None, 0.0, 0.2, 1.0]),
    time=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_word_swap_exchanges_only_adjacent_movable_tokens(p, fraction, time, seed):
    torch.manual_seed(seed)
    ids = torch.arange(5 * time).view(5, time)
    keep = None if fraction is None else torch.rand(ids.shape) < fraction
    before = ids.clone()
    out = word_swap(ids, p, keep)
    assert torch.equal(ids, before)
    for text, result, row in zip(ids.tolist(), out.tolist(), range(5), strict=True):
        index = 0
        while index < time:
            if result[index] != text[index]:
                assert result[index : index + 2] == [text[index + 1], text[index]]
                assert keep is None or not keep[row, index : index + 2].any()
                index += 1
            index += 1


def test_word_swap_starts_at_rate_p(assert_rate):
    ids = torch.arange(2).expand(3_300_000, 2)
    for p in (0.1, 0.5):
        assert_rate(word_swap(ids, p)[:, 0] == 1, p)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_word_swap_covers_the_whole_text(p):
    # From left to right, each token that has not moved yet starts a swap at rate p: a swap starts
    # at p / (1 + p) of the positions, and moves two tokens.
    out = word_swap(torch.arange(2000).expand(200, 2000), p)
    moved = (out != torch.arange(2000)).double().mean().item()
    assert moved == pytest.approx(2 * p / (1 + p), rel=0.02)


def test_word_swap_draws_for_each_text(assert_independent):
    out = word_swap(torch.arange(2).expand(10_000, 2), 0.5)
    assert_independent(out[:, 0], 0)


def test_default_augmentations_change_nothing():
    images, targets = torch.rand(4, 3, 8, 8), torch.eye(4)
    out, mixed = ImageAugmentation()(images, targets)
    assert torch.equal(out, images)
    assert torch.equal(mixed, targets)
    waveforms = torch.randn(4, 100)
    for lengths in (None, torch.tensor([100, 50, 20, 1])):
        assert torch.equal(AudioAugmentation().waveform(waveforms, 100, lengths), waveforms)
    assert torch.equal(AudioAugmentation().spectrogram(images[:, 0]), images[:, 0])
    ids = torch.randint(0, 100, (4, 30))
    assert torch.equal(TextAugmentation()(ids, 1, torch.zeros_like(ids, dtype=torch.bool)), ids)


def from_seed(function, *arguments):
    torch.manual_seed(5)
    out = function(*arguments)
    return out if isinstance(out, tuple) else (out,)


def assert_equal_draws(first, second):
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("name", "amount", "function"),
    [
        # Relative to the height of 8 pixels; the width differs.
        ("crop", 0.25, lambda x, t: (random_crop(x, 2), t)),
        ("flip", 0.3, lambda x, t: (random_flip(x, 0.3), t)),
        ("cutout", 0.4, lambda x, t: (cutout(x, 3), t)),
        ("mixup", 0.7, lambda x, t: mixup(x, t, 0.7)),
        ("cutmix", 0.7, lambda x, t: cutmix(x, t, 0.7)),
    ],
)
def test_each_image_field_calls_its_function(name, amount, function):
    data = torch.rand(20, 3, 8, 12), torch.eye(20)
    actual = from_seed(ImageAugmentation(**{name: amount}), *data)
    assert_equal_draws(actual, from_seed(function, *data))
    assert not torch.equal(actual[0], data[0])


def test_image_augmentations_can_be_combined():
    def by_hand(images, targets):
        return mixup(cutout(random_flip(random_crop(images, 1), 0.5), 2), targets, 1.0)

    data = torch.rand(20, 3, 8, 8), torch.eye(20)
    augment = ImageAugmentation(crop=0.125, flip=0.5, cutout=0.25, mixup=1.0)
    assert_equal_draws(from_seed(augment, *data), from_seed(by_hand, *data))


def test_mixup_and_cutmix_share_the_batches():
    images, classes = one_hot_images(8, 5, 6), torch.eye(8)
    augment = ImageAugmentation(mixup=5.0, cutmix=5.0)
    # Only mixup creates values between zero and one.
    blended = [bool((augment(images, classes)[0] % 1).any()) for _ in range(400)]
    assert 160 < sum(blended) < 240


def test_each_audio_field_calls_its_function():
    waveforms, lengths = torch.randn(20, 100), torch.arange(81, 101)
    for augment, function in (
        # 0.1 seconds at 50 samples a second.
        (AudioAugmentation(time_shift=0.1), lambda x, n: time_shift(x, 5, n)),
        (AudioAugmentation(noise=0.2), lambda x, n: add_noise(x, 0.2, n)),
    ):
        actual = from_seed(augment.waveform, waveforms, 50, lengths)
        assert_equal_draws(actual, from_seed(function, waveforms, lengths))
        assert not torch.equal(actual[0], waveforms)
        assert torch.equal(augment.spectrogram(waveforms[None]), waveforms[None])
    spectrograms = torch.randn(20, 8, 10)
    for augment, dim in (
        (AudioAugmentation(frequency_mask=4), -2),
        (AudioAugmentation(time_mask=4), -1),
    ):
        actual = from_seed(augment.spectrogram, spectrograms)
        assert_equal_draws(actual, from_seed(mask_stripe, spectrograms, 4, dim))
        assert not torch.equal(actual[0], spectrograms)
        assert torch.equal(augment.waveform(waveforms, 50, lengths), waveforms)


def test_each_text_field_calls_its_function():
    ids = torch.randint(10, 1000, (20, 30))
    keep = torch.rand(ids.shape) < 0.2
    for augment, function in (
        (TextAugmentation(word_dropout=0.3), lambda: word_dropout(ids, 0.3, 1, keep)),
        (TextAugmentation(word_swap=0.3), lambda: word_swap(ids, 0.3, keep)),
    ):
        actual = from_seed(augment, ids, 1, keep)
        assert_equal_draws(actual, from_seed(function))
        assert not torch.equal(actual[0], ids)


def test_kept_text_is_not_changed():
    ids = torch.randint(10, 1000, (20, 30))
    keep = torch.rand(ids.shape) < 0.2
    out = TextAugmentation(word_dropout=0.5, word_swap=0.5)(ids, 1, keep)
    assert torch.equal(out[keep], ids[keep])


RATES = [
    (ImageAugmentation, "crop"),
    (ImageAugmentation, "flip"),
    (ImageAugmentation, "cutout"),
    (TextAugmentation, "word_dropout"),
    (TextAugmentation, "word_swap"),
]
COUNTS = [
    (AudioAugmentation, "frequency_mask"),
    (AudioAugmentation, "time_mask"),
]
AMOUNTS = [
    (ImageAugmentation, "mixup"),
    (ImageAugmentation, "cutmix"),
    (AudioAugmentation, "time_shift"),
    (AudioAugmentation, "noise"),
]


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *(
            (*field, value)
            for field in RATES
            for value in (1.0, -0.1, math.nan, "0.5", True, False)
        ),
        *((*field, value) for field in COUNTS for value in (-1, 1.5, math.nan, "1", True)),
        *((*field, value) for field in AMOUNTS for value in (-0.1, math.nan, math.inf, "1", True)),
    ],
)
def test_wrong_amount_is_refused_by_name_and_value(kind, name, value):
    with pytest.raises(ValueError, match=f"^{name} is ") as refusal:
        kind(**{name: value})
    assert str(refusal.value).endswith(f"not {value!r}")


def test_every_field_is_checked():
    checked = {(kind, name) for kind, name in (*RATES, *COUNTS, *AMOUNTS)}
    kinds = (ImageAugmentation, AudioAugmentation, TextAugmentation)
    checked.add((ImageAugmentation, "flip_kind"))  # By a test of its own.
    assert checked == {(kind, field.name) for kind in kinds for field in dataclasses.fields(kind)}


@pytest.mark.parametrize(("kind", "name"), [*COUNTS, *AMOUNTS])
def test_good_amounts_are_kept(kind, name):
    for value in (0, 3):
        assert getattr(kind(**{name: value}), name) == value


@pytest.mark.parametrize("kind", [ImageAugmentation, AudioAugmentation, TextAugmentation])
def test_plain_data_that_cannot_change(kind):
    augment = kind()
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(augment, field.name, 0)
    assert kind(**dataclasses.asdict(augment)) == augment


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flip_kind": "none"}, "flip_kind is 'random' or 'alternating', not 'none'"),
        ({"flip_kind": "alternating", "flip": 0.3}, "flip is 0.5, not 0.3"),
    ],
)
def test_a_wrong_kind_of_flip_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ImageAugmentation(**given)


def test_alternating_flips_show_both_sides_in_each_pair_of_epochs():
    indices = torch.arange(10_000)
    first, second, third = (alternating_flip(indices, epoch) for epoch in range(3))
    assert torch.equal(first, ~second)
    assert torch.equal(first, third)
    assert abs(first.double().mean().item() - 0.5) < 0.02
    # Adjacent images are flipped independently.
    assert abs((first[1:] == first[:-1]).double().mean().item() - 0.5) < 0.02


@pytest.mark.parametrize("crop", [0.0, 0.25])
def test_the_selected_images_are_flipped(crop):
    images = torch.arange(8.0).expand(2, 1, 8, 8)
    augment = ImageAugmentation(crop=crop, flip=0.5, flip_kind="alternating")
    changed, _ = augment(images, torch.eye(2), torch.tensor([False, True]))
    steps = changed.diff(dim=-1)[..., 3]  # In the middle, away from reflect padding.
    assert torch.equal(steps[0], torch.ones(1, 8))
    assert torch.equal(steps[1], -torch.ones(1, 8))


@pytest.mark.parametrize("mix", [mixup, cutmix])
@pytest.mark.parametrize("targets", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_mixing_keeps_the_types(mix, inputs, targets):
    images, classes = one_hot_images(8, 5, 6), torch.eye(8)
    out, mixed = mix(images.to(inputs), classes.to(targets), 1.0)
    assert (out.dtype, mixed.dtype) == (inputs, targets)
    torch.testing.assert_close(out.mean(dim=(2, 3)).float(), mixed.float(), atol=0.01, rtol=0)


def test_mixing_in_double_precision_is_exact():
    torch.manual_seed(0)
    images, classes = torch.rand(8, 1, 5, 6, dtype=torch.float64), torch.eye(8).double()
    out, targets = mixup(images, classes, 1.0)
    expected = (targets @ images.flatten(1)).view_as(images)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-15)


def test_integer_targets_become_floats():
    for mix in (mixup, cutmix):
        _, targets = mix(one_hot_images(8, 5, 6), torch.eye(8, dtype=torch.long), 1.0)
        torch.testing.assert_close(targets.sum(1), torch.ones(8))


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "1", None])
def test_a_wrong_alpha_is_refused_by_value(value):
    for mix in (mixup, cutmix):
        with pytest.raises(ValueError, match=f"alpha is .*{value!r}"):
            mix(torch.rand(2, 1, 3, 3), torch.eye(2), value)


@pytest.mark.parametrize("value", [-1, 2.0, 3, "1", None, True])
def test_wrong_pixels_are_refused_by_value(value):
    images = torch.rand(2, 1, 3, 4)
    with pytest.raises(ValueError, match=f"padding is .*{value!r}"):
        random_crop(images, value)
    if value != 3:
        with pytest.raises(ValueError, match=f"size is .*{value!r}"):
            cutout(images, value)


def test_empty_batches_and_texts_are_taken():
    images, classes = torch.rand(0, 3, 8, 8), torch.rand(0, 4)
    everything = ImageAugmentation(crop=0.2, flip=0.5, cutout=0.5, mixup=1.0)
    assert [x.shape for x in everything(images, classes)] == [images.shape, classes.shape]
    assert cutmix(images, classes, 1.0)[1].shape == classes.shape
    for shape in ((0, 5), (3, 0)):
        ids = torch.zeros(shape, dtype=torch.long)
        changed = TextAugmentation(0.5, 0.5)(ids, unknown=1, keep=ids == 0)
        assert changed.shape == shape


def test_the_default_device_may_be_another_one():
    with torch.device("meta"):
        images, classes = torch.rand(4, 3, 8, 8), torch.rand(4, 4)
        augmentation = ImageAugmentation(crop=0.2, flip=0.5, cutout=0.5, mixup=1.0, cutmix=1.0)
        assert augmentation(images, classes)[0].shape == images.shape
