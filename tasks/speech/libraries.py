"""Audio classifiers of transformers: those of waveforms, and the audio spectrogram transformer."""

from typing import Any

import torch
from torch import Tensor, nn

from regain import Regularization, convert, mask_steps
from regain.registry import Registry
from tasks.building import Factory
from tasks.errors import InputError
from tasks.model_libraries import hub_config, hub_model, logits_of, preprocessor
from tasks.speech.data import SpeechSpec
from tasks.speech.models import as_floats, mean_over_time, step_mask

LIBRARIES: Registry[Factory] = Registry("model.arch")

SPECTROGRAMS = "audio-spectrogram-transformer"
# Of AudioSet, for which the audio spectrogram transformer is trained.
AST_MEAN, AST_STD = -4.2677393, 4.5689974


class WaveformModel(nn.Module):
    """A model of transformers that takes waveforms, such as Wav2Vec2 or HuBERT.

    Each clip is scaled to mean 0 and variance 1. A model whose features are normalized over time
    (`feat_extract_norm: group`) gets no attention mask, as in its pretraining: padding changes its
    output a little.

    Shape:
        waveforms: (batch, samples). lengths: (batch,), or None if no clip is padded. The output:
        logits (batch, classes).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.masked = getattr(network.config, "feat_extract_norm", "layer") == "layer"

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = as_floats(waveforms).unsqueeze(1)
        mask = step_mask(lengths, x.shape[2])
        centred = x - mean_over_time(x, mask).unsqueeze(1)
        if mask is not None:
            centred = centred.masked_fill(~mask.unsqueeze(1), 0.0)
        variance = mean_over_time(centred.square(), mask).unsqueeze(1)
        x = (centred * torch.rsqrt(variance + 1e-7)).squeeze(1)
        if mask is None or not self.masked:
            return logits_of(self.network(x))
        return logits_of(self.network(x, attention_mask=mask.long()))


class SpectrogramModel(nn.Module):
    """The audio spectrogram transformer behind its features: log-mel energies as Kaldi's.

    Clips are cut or padded to the length that the model is built for.

    Shape:
        As `WaveformModel`.
    """

    def __init__(self, network: Any, sample_rate: int, mean: float, std: float) -> None:
        super().__init__()
        self.network = network
        self.sample_rate = sample_rate
        self.mean, self.std = mean, std

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        config: Any = self.network.config
        with torch.autocast(waveforms.device.type, enabled=False):
            energies, frames = self.energies(as_floats(waveforms).float(), lengths)
        # Frames behind the end of a clip are 0, as are those up to the length of the model.
        features = mask_steps(energies, step_mask(frames, energies.shape[2])).transpose(1, 2)
        missing = features.new_zeros(features.shape[0], config.max_length, features.shape[2])
        features = torch.cat((features, missing), dim=1)[:, : config.max_length]
        return logits_of(self.network((features - self.mean) / (2 * self.std)))

    def energies(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return log-mel energies (batch, bands, frames), and the number of frames of each clip.

        `torchaudio.compliance.kaldi.fbank` computes the same, for one clip at a time.
        """
        from torchaudio.compliance.kaldi import get_mel_banks

        window, shift = round(0.025 * self.sample_rate), round(0.010 * self.sample_rate)
        if lengths is None:
            lengths = torch.full(x.shape[:1], x.shape[1], device=x.device)
        # The last frame of a clip is complete; a clip shorter than a frame has one all the same.
        counts = ((lengths - window) // shift + 1).clamp(min=1)
        # At least one frame, also of a clip that is shorter than the shift.
        frames = nn.functional.pad(x, (0, window)).unfold(1, window, shift)
        frames = frames - frames.mean(dim=2, keepdim=True)
        before = torch.cat((frames[..., :1], frames[..., :-1]), dim=2)
        size = 1 << (window - 1).bit_length()
        spectra = torch.fft.rfft(
            (frames - 0.97 * before) * torch.hann_window(window, periodic=False, device=x.device),
            size,
        )
        powers = spectra.real.square() + spectra.imag.square()
        bands: int = self.network.config.num_mel_bins
        filters, _ = get_mel_banks(bands, size, self.sample_rate, 20.0, 0.0, 100.0, -500.0, 1.0)
        energies = powers[..., :-1] @ filters.to(x.device).t()
        return energies.clamp(min=torch.finfo(x.dtype).eps).log().transpose(1, 2), counts


@LIBRARIES.register("hf")
def hub_audio_model(
    name: str,
    spec: SpeechSpec,
    reg: Regularization,
    pretrained: bool | str | None,
    **options: Any,
) -> nn.Module:
    """Build an audio classifier of transformers; `options` are values of its config.

    Its SpecAugment is off: `model.augment` changes the waveforms.

    Raises:
        InputError: It cannot be loaded, is no audio classifier, takes other inputs, or was trained
            at another sample rate.
    """
    from transformers import AutoModelForAudioClassification

    argument = f"model.arch=hf/{name}"
    source = name if pretrained is True else pretrained or None
    config = hub_config(argument, name, options)
    if hasattr(config, "apply_spec_augment") and "apply_spec_augment" not in options:
        config.apply_spec_augment = False
    preprocessing = preprocessor(source) if source else {}
    rate = preprocessing.get("sampling_rate", spec.sample_rate)
    if rate != spec.sample_rate:
        raise InputError(
            f"{argument} was trained at {rate} samples a second, and the data has "
            f"{spec.sample_rate}; give --data.sample_rate={rate}"
        )
    network: Any = hub_model(
        AutoModelForAudioClassification, argument, config, source, len(spec.classes)
    )
    if network.main_input_name != "input_values":
        raise InputError(
            f"{argument} is a {config.model_type} model, which takes {network.main_input_name}; "
            "use one of waveforms, such as wav2vec2 or hubert, or an audio spectrogram transformer"
        )
    network = convert(network, reg)
    if config.model_type == SPECTROGRAMS:
        mean, std = preprocessing.get("mean", AST_MEAN), preprocessing.get("std", AST_STD)
        return SpectrogramModel(network, spec.sample_rate, mean, std)
    return WaveformModel(network)
