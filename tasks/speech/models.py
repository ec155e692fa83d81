"""Speech models: each takes waveforms and one `Regularization`, and is exact under padding.

A clip gets the same logits alone and in a batch of longer ones: the steps after its end are zero
before each convolution, enter no statistic of a batch norm, and no mean over time.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.transforms import MelSpectrogram

from regain import AudioAugmentation, CheckpointedBlock, Regularization, mask_steps
from regain.registry import Registry
from tasks.speech.data import SpeechSpec

MODELS: Registry[Callable[..., nn.Module]] = Registry("model.arch")

MEL_BANDS = 40
# Seconds.
WINDOW, HOP = 0.030, 0.010


def step_mask(lengths: Tensor | None, steps: int) -> Tensor | None:
    """Mark the valid ones of `steps` steps, (batch, steps); None if no example is padded."""
    if lengths is None:
        return None
    return torch.arange(steps, device=lengths.device) < lengths.unsqueeze(1)


def after_stride(lengths: Tensor | None, stride: int) -> Tensor | None:
    """Count the valid steps after a convolution or pooling that keeps every `stride`-th one."""
    return None if lengths is None else (lengths + stride - 1) // stride


def mean_over_time(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the valid steps, (batch, channels, time) to (batch, channels)."""
    if mask is None:
        return x.mean(dim=2)
    return mask_steps(x, mask).sum(dim=2) / mask.sum(dim=1, keepdim=True)


def as_floats(waveforms: Tensor) -> Tensor:
    """Scale 16-bit samples to [-1, 1); floats stay as they are."""
    return waveforms if waveforms.is_floating_point() else waveforms.float() / 32768


class LogMel(nn.Module):
    """Log-mel energies, less each band's mean over the clip, augmented while training.

    Args:
        spec: What the data is like.
        augment: Its masks are laid over the spectrogram; none by default.

    Shape:
        waveforms: (batch, samples). lengths: (batch,), in samples. The output: spectrograms (batch,
        mel bands, frames), zero after each clip's end, and the lengths in frames.
    """

    def __init__(self, spec: SpeechSpec, augment: AudioAugmentation = AudioAugmentation()) -> None:
        super().__init__()
        self.augment = augment
        self.hop = round(HOP * spec.sample_rate)
        window = round(WINDOW * spec.sample_rate)
        # Constant padding is what a longer clip in the batch pads with too: mirrored padding would
        # make the last frames of a clip depend on its company.
        self.mel = MelSpectrogram(
            spec.sample_rate,
            n_fft=1 << (window - 1).bit_length(),
            win_length=window,
            hop_length=self.hop,
            n_mels=MEL_BANDS,
            f_min=20.0,
            pad_mode="constant",
        )

    def forward(self, waveforms: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        # In single precision under autocast too: energies span more than half precision holds.
        with torch.autocast(waveforms.device.type, enabled=False):
            energies = (self.energies(as_floats(waveforms).float()) + 1e-6).log()
        frames = None if lengths is None else lengths // self.hop + 1
        mask = step_mask(frames, energies.shape[-1])
        # The loudness of each band is a property of the recording and not of the word.
        mean = mean_over_time(energies, mask).unsqueeze(-1)
        centred = mask_steps(energies - mean, mask)
        std = mean_over_time(centred.square(), mask).mean(dim=1).view(-1, 1, 1).add(1e-5).sqrt()
        spectrograms = centred / std
        if self.training:
            spectrograms = self.augment.spectrogram(spectrograms)
        return spectrograms, frames

    def energies(self, waveforms: Tensor) -> Tensor:
        """Do what `self.mel` does, whose window and filters these are, in a third of the time.

        It takes square roots of the powers and squares them again, and the parts of each frequency
        lie apart in memory.
        """
        window, filters = self.mel.spectrogram.window, self.mel.mel_scale.fb
        size = self.mel.n_fft
        window = F.pad(window, ((size - len(window)) // 2, (size - len(window) + 1) // 2))
        padded = F.pad(waveforms, (size // 2, size // 2))
        spectra = torch.fft.rfft(padded.unfold(-1, size, self.hop) * window)
        powers = spectra.real.square().addcmul_(spectra.imag, spectra.imag)
        energies: Tensor = (powers @ filters).transpose(1, 2)
        return energies


class TemporalBlock(CheckpointedBlock):
    """Two convolutions over time around a shortcut (Choi et al. 2019).

    Shape:
        x: (batch, inputs, time) to (batch, outputs, time / stride). mask: (batch, time / stride).
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, reg: Regularization, drop_path: nn.Module
    ) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = reg.prepare_layer(nn.Conv1d(inputs, outputs, 9, stride, padding=4))
        self.norm1 = reg.masked_norm_layer(outputs, dims=1)
        self.dropout = reg.dropout_layer(outputs, dims=1, time=True)
        self.conv2 = reg.prepare_layer(nn.Conv1d(outputs, outputs, 9, padding=4))
        self.norm2 = reg.masked_norm_layer(outputs, dims=1)
        self.drop_path = drop_path
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = reg.prepare_layer(nn.Conv1d(inputs, outputs, 1, stride))
            self.shortcut_norm = reg.masked_norm_layer(outputs, dims=1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        branch = self.dropout(self.norm1(self.conv1(x), mask).relu())
        branch = self.drop_path(self.norm2(self.conv2(branch), mask))
        if not isinstance(self.shortcut, nn.Identity):
            x = self.shortcut_norm(self.shortcut(x), mask).relu()
        return torch.relu(x + branch)


@MODELS.register("tc_resnet")
class TCResNet(nn.Module):
    """TC-ResNet (Choi et al. 2019): mel bands are channels, convolutions run over time only.

    Args:
        spec: What the data is like.
        reg: Regularization.
        augment: Augmentation of the spectrogram.
        depth: Blocks a stage: 1 makes TC-ResNet8, 2 makes TC-ResNet14.
        width: Channels of the first convolution; 16 in the paper.

    Shape:
        waveforms: (batch, samples). lengths: (batch,), or None if no clip is padded. The output:
        logits (batch, classes).
    """

    def __init__(
        self,
        spec: SpeechSpec,
        reg: Regularization,
        augment: AudioAugmentation = AudioAugmentation(),
        depth: int = 1,
        width: int = 16,
    ) -> None:
        super().__init__()
        self.features = LogMel(spec, augment)
        self.input_dropout = reg.input_dropout_layer()
        self.conv = reg.prepare_layer(nn.Conv1d(MEL_BANDS, width, 3, padding=1))
        self.norm = reg.masked_norm_layer(width, dims=1)
        self.blocks = nn.ModuleList()
        self.strides: list[int] = []
        channels = width
        for stage, ratio in enumerate((1.5, 2.0, 3.0)):
            for place in range(depth):
                outputs = round(width * ratio)
                drop_path = reg.drop_path_layer(stage * depth + place, 3 * depth)
                stride = 2 if place == 0 else 1
                block = TemporalBlock(channels, outputs, stride, reg, drop_path)
                self.blocks.append(block if place == 0 else reg.layer_drop_layer(block))
                self.strides.append(stride)
                channels = outputs
        self.head_dropout = reg.head_dropout_layer()
        self.head = reg.weight_drop_layer(nn.Linear(channels, len(spec.classes)))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        x, lengths = self.features(waveforms, lengths)
        x = self.conv(self.input_dropout(x))
        x = self.norm(x, step_mask(lengths, x.shape[-1])).relu()
        steps = x.shape[-1]
        for block, stride in zip(self.blocks, self.strides, strict=True):
            lengths, steps = after_stride(lengths, stride), (steps + stride - 1) // stride
            x = block(x, step_mask(lengths, steps))
        pooled = mean_over_time(x, step_mask(lengths, steps))
        return cast(Tensor, self.head(self.head_dropout(pooled)))


class BroadcastBlock(CheckpointedBlock):
    """A broadcasted residual block (Kim et al. 2021).

    A 2-D branch works along frequency, under sub-spectral norm; its mean over frequency goes
    through a 1-D branch along time, and is broadcast back over all frequencies.

    Shape:
        x: (batch, inputs, frequency, time) to (batch, outputs, frequency / stride, time).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dilation: int,
        reg: Regularization,
        drop_path: nn.Module,
    ) -> None:
        super().__init__()
        self.transition: nn.Module = nn.Identity()
        if inputs != outputs:
            self.transition = reg.prepare_layer(nn.Conv2d(inputs, outputs, 1))
            self.transition_norm = reg.masked_norm_layer(outputs, dims=2)
        self.frequency = reg.prepare_layer(
            nn.Conv2d(outputs, outputs, (3, 1), (stride, 1), (1, 0), groups=outputs)
        )
        self.frequency_norm = reg.masked_norm_layer(outputs, dims=2, bands=5)
        self.time = reg.prepare_layer(
            nn.Conv2d(outputs, outputs, (1, 3), 1, (0, dilation), (1, dilation), groups=outputs)
        )
        self.time_norm = reg.masked_norm_layer(outputs, dims=2)
        self.point = reg.standardized(nn.Conv2d(outputs, outputs, 1))
        self.dropout = reg.dropout_layer(outputs, dims=2, time=True)
        self.drop_path = drop_path

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        same = isinstance(self.transition, nn.Identity)
        wide = x if same else self.transition_norm(self.transition(x), mask).relu()
        wide = self.frequency_norm(self.frequency(wide), mask)
        narrow = self.time(wide.mean(dim=2, keepdim=True))
        narrow = self.dropout(self.point(F.silu(self.time_norm(narrow, mask))))
        branch = wide + narrow
        total = x + self.drop_path(branch) if same else branch
        return mask_steps(total.relu(), mask)


@MODELS.register("bc_resnet")
class BCResNet(nn.Module):
    """BC-ResNet (Kim et al. 2021), with sub-spectral batch norm over five bands.

    Args:
        spec: What the data is like.
        reg: Regularization.
        augment: Augmentation of the spectrogram.
        depth: Multiplies the blocks (2, 2, 4, 4) of the stages.
        width: Channels of the second stage; 8 makes BC-ResNet-1, 64 makes BC-ResNet-8.

    Shape:
        As `TCResNet`.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        reg: Regularization,
        augment: AudioAugmentation = AudioAugmentation(),
        depth: int = 1,
        width: int = 8,
    ) -> None:
        super().__init__()
        self.features = LogMel(spec, augment)
        self.input_dropout = reg.input_dropout_layer()
        first, last = 2 * width, 4 * width
        self.conv = reg.prepare_layer(nn.Conv2d(1, first, 5, (2, 1), 2))
        self.norm = reg.masked_norm_layer(first, dims=2)
        plan = [
            (round(width * ratio), place == 0 and stage in (1, 2), 2**stage)
            for stage, (ratio, blocks) in enumerate(((1.0, 2), (1.5, 2), (2.0, 4), (2.5, 4)))
            for place in range(blocks * depth)
        ]
        self.blocks = nn.ModuleList()
        channels = first
        for number, (outputs, halve, dilation) in enumerate(plan):
            drop_path = reg.drop_path_layer(number, len(plan))
            stride = 2 if halve else 1
            block = BroadcastBlock(channels, outputs, stride, dilation, reg, drop_path)
            same = channels == outputs and stride == 1
            self.blocks.append(reg.layer_drop_layer(block) if same else block)
            channels = outputs
        self.deep = reg.prepare_layer(
            nn.Conv2d(channels, channels, 5, padding=(0, 2), groups=channels)
        )
        self.deep_norm = reg.masked_norm_layer(channels, dims=2)
        self.point = reg.prepare_layer(nn.Conv2d(channels, last, 1))
        self.point_norm = reg.masked_norm_layer(last, dims=2)
        self.head_dropout = reg.head_dropout_layer()
        self.head = reg.weight_drop_layer(nn.Linear(last, len(spec.classes)))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        x, lengths = self.features(waveforms, lengths)
        # All strides are in frequency, so that one mask serves all layers.
        mask = step_mask(lengths, x.shape[-1])
        x = self.norm(self.conv(self.input_dropout(x).unsqueeze(1)), mask).relu()
        for block in self.blocks:
            x = block(x, mask)
        x = self.deep_norm(self.deep(x), mask)
        x = self.point_norm(self.point(x), mask).relu()
        pooled = mean_over_time(x.mean(dim=2), mask)
        return cast(Tensor, self.head(self.head_dropout(pooled)))


def max_pool(x: Tensor, size: int) -> Tensor:
    """Pool over time; the last steps may be fewer than `size`."""
    if torch.compiler.is_exporting():
        # `max_pool1d` would fix the number of steps of an exported graph.
        return F.max_pool2d(x.unsqueeze(2), (1, size), ceil_mode=True).squeeze(2)
    return F.max_pool1d(x, size, ceil_mode=True)


@MODELS.register("m5")
class M5(nn.Module):
    """M5 (Dai et al. 2017): convolutions on the waveform itself.

    The paper reads 8,000 samples a second through a first kernel of 80 samples with stride 4; here
    both are as long in seconds, at any sample rate.

    Args:
        spec: What the data is like.
        reg: Regularization.
        augment: Has no spectrogram to change here.
        depth: Convolutions in each stage after the first; 1 in the paper.
        width: Channels of the first stage; 128 in the paper.

    Shape:
        As `TCResNet`.
    """

    def __init__(
        self,
        spec: SpeechSpec,
        reg: Regularization,
        augment: AudioAugmentation = AudioAugmentation(),
        depth: int = 1,
        width: int = 128,
    ) -> None:
        super().__init__()
        self.stride = round(0.0005 * spec.sample_rate)
        # Odd where the stride is, so that it reaches equally far to both sides.
        kernel = 20 * self.stride + self.stride % 2
        self.input_dropout = reg.input_dropout_layer()
        self.convs, self.norms, self.dropouts = (nn.ModuleList() for _ in range(3))
        self.pools: list[bool] = []
        channels = 1
        for stage, outputs in enumerate((width, width, 2 * width, 4 * width)):
            for place in range(depth if stage else 1):
                shape = (3, 1, 1) if stage else (kernel, self.stride, (kernel - self.stride) // 2)
                self.convs.append(reg.prepare_layer(nn.Conv1d(channels, outputs, *shape)))
                self.norms.append(reg.masked_norm_layer(outputs, dims=1))
                self.dropouts.append(reg.dropout_layer(outputs, dims=1, time=True))
                self.pools.append(place == (depth if stage else 1) - 1)
                channels = outputs
        self.head_dropout = reg.head_dropout_layer()
        self.head = reg.weight_drop_layer(nn.Linear(channels, len(spec.classes)))

    def forward(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        waveforms = as_floats(waveforms)
        count = waveforms.shape[1] if lengths is None else lengths.unsqueeze(1)
        power = waveforms.square().sum(dim=1, keepdim=True) / count
        x = self.input_dropout(waveforms * torch.rsqrt(power + 1e-8)).unsqueeze(1)
        if lengths is not None:
            lengths = (lengths // self.stride).clamp(min=1)
        layers = zip(self.convs, self.norms, self.dropouts, self.pools, strict=True)
        for conv, norm, dropout, pool in layers:
            x = conv(x)
            x = dropout(norm(x, step_mask(lengths, x.shape[-1])).relu())
            if pool:
                # No value is below zero after the ReLU, so that the zeros of the masked steps never
                # take the maximum from a valid one.
                x = max_pool(x, 4)
                lengths = after_stride(lengths, 4)
        pooled = mean_over_time(x, step_mask(lengths, x.shape[-1]))
        return cast(Tensor, self.head(self.head_dropout(pooled)))
