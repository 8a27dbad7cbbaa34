"""The encoder of the world model, with features extractors for images and random image shifts."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_mpc.common import processes
from sb3_mpc.common.buffers.batch import observed
from sb3_mpc.common.checks.arguments import UnsupportedObservationError
from sb3_mpc.common.networks.layers import init_linear, latent_norm, make_mlp

SHIFT_PAD = 3
SMALLEST_STD, LARGEST = 1e-2, 10.0  # of normalised observations; the largest is VecNormalize's
SMALLEST_STD_BEFORE = 1e-4  # of agents whose files do not say it
# (kernel, stride) of the four convolutions, 64x64 pixels -> 4x4 features (official code)
CONV_LAYERS = ((7, 2), (5, 2), (3, 2), (3, 1))


def random_shift(images: th.Tensor, shift: th.Tensor) -> th.Tensor:
    """
    Shift images by whole pixels after replicating their border (DrQ-v2's augmentation).

    :param images: ``[B, C, height, width]``, any dtype
    :param shift: columns and rows to move by, ``[B, 2]`` integers in ``0 .. 2 * SHIFT_PAD``, SHIFT_PAD for none
    :return: ``[B, C, height, width]``, same dtype
    """
    batch, _, height, width = images.shape
    rows = (th.arange(height, device=images.device) + shift[:, 1:] - SHIFT_PAD).clamp(0, height - 1)  # [B, height]
    columns = (th.arange(width, device=images.device) + shift[:, :1] - SHIFT_PAD).clamp(0, width - 1)  # [B, width]
    index = th.arange(batch, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class NormalizingExtractor(BaseFeaturesExtractor):
    """
    Flattened observations, each number less its mean, divided by its standard deviation and cut at 10, as those of
    SB3's ``VecNormalize``. Mean and deviation are those of all observations that were replayed in updates so far; they
    are part of the agent, which is therefore evaluated in plain environments.

    Unlike there, a deviation below 0.01 counts as 0.01. The position of a drawer that has hardly ever been moved would
    otherwise be 10 as soon as it moves at all, however far, and the last digits of a constant would be noise.

    :param observation_space: space of the observations
    """

    mean: th.Tensor
    std: th.Tensor
    smallest_std: th.Tensor
    count: th.Tensor
    normalizes = True

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, get_flattened_obs_dim(observation_space))
        self.register_buffer("mean", th.zeros(self.features_dim))
        self.register_buffer("std", th.ones(self.features_dim))
        self.register_buffer("smallest_std", th.tensor(SMALLEST_STD))
        self.register_buffer("count", th.zeros((), dtype=th.long))

    @th.no_grad()
    def observe(self, observations: th.Tensor, counts: th.Tensor) -> None:
        """
        :param observations: further observations, as they were replayed ``[B, *shape]``
        :param counts: 1 for each that counts, 0 for the others ``[B, 1]``
        """
        x: Any = preprocess_obs(observations, self._observation_space)  # images do not come here
        x, counts = processes.gather(x.flatten(1)), processes.gather(counts)
        number = counts.sum()
        self.count.add_(number.long())
        part, mean = number / self.count.clamp(min=1), (counts * x).sum(0) / number.clamp(min=1)
        var, shift = (counts * (x - mean).square()).sum(0) / number.clamp(min=1), mean - self.mean
        var = (1 - part) * self.std.square() + part * var + part * (1 - part) * shift.square()
        self.mean.add_(part * shift)
        self.std.copy_(var.sqrt())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``[B, ...]``
        :return: ``[B, features_dim]``
        """
        x = (observations.flatten(1) - self.mean) / self.std.maximum(self.smallest_std)
        return x.clamp(-LARGEST, LARGEST)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Of an agent that has learned with another smallest deviation, also that."""
        if f"{prefix}std" in state_dict:
            state_dict.setdefault(f"{prefix}smallest_std", th.tensor(SMALLEST_STD_BEFORE))
        super()._load_from_state_dict(state_dict, prefix, *args)


class PixelExtractor(BaseFeaturesExtractor):
    """
    Convolutional features of TD-MPC2: four convolutions with ReLU in between, on images in [0, 1] moved to [-0.5, 0.5].

    There is no linear layer by default; 64x64 images give ``16 * num_channels`` features. Convolutions whose kernel is
    larger than their input are left out for small images.

    :param observation_space: image space, channels first
    :param features_dim: size of a linear layer after the convolutions, none if None
    :param num_channels: channels of every layer
    :param normalized_image: images are already in [0, 1]
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        features_dim: int | None = None,
        num_channels: int = 32,
        normalized_image: bool = False,
    ) -> None:
        if not is_image_space(observation_space, check_channels=False, normalized_image=normalized_image):
            raise UnsupportedObservationError(
                f"CnnPolicy needs image observations, not {observation_space}: use MlpPolicy, or give "
                "policy_kwargs=dict(normalize_images=False) if these images are scaled already."
            )
        channels, size = observation_space.shape[0], min(observation_space.shape[1:])
        layers: list[nn.Module] = []
        for kernel, stride in CONV_LAYERS:
            if size < kernel:
                break
            layers += [nn.Conv2d(channels, num_channels, kernel, stride=stride), nn.ReLU()]
            channels, size = num_channels, (size - kernel) // stride + 1
        if not layers:
            raise ValueError(f"Images of shape {observation_space.shape} are too small for CnnPolicy: use MlpPolicy.")
        cnn = nn.Sequential(*layers[:-1], nn.Flatten())  # the last convolution is followed by SimNorm, not by ReLU
        with th.no_grad():
            conv_dim = cnn(th.zeros(1, *observation_space.shape)).shape[1]
        super().__init__(observation_space, features_dim or conv_dim)
        self.cnn = cnn
        self.linear = nn.Linear(conv_dim, features_dim) if features_dim else nn.Identity()

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: ``[B, C, height, width]`` in [0, 1]
        :return: ``[B, features_dim]``
        """
        return self.linear(self.cnn(observations - 0.5))


class DictExtractor(BaseFeaturesExtractor):
    """
    Features of a dict observation: :class:`PixelExtractor` for images, everything else flattened, all concatenated.

    :param observation_space: dict of spaces
    :param cnn_output_dim: size of a linear layer after the convolutions of each image, none if None
    :param num_channels: channels of the convolutions
    :param normalized_image: images are already in [0, 1]
    :param normalize_observations: normalise what is not an image, see :class:`NormalizingExtractor`
    :raises UnsupportedObservationError: if one of the spaces is empty
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_output_dim: int | None = None,
        num_channels: int = 32,
        normalized_image: bool = False,
        normalize_observations: bool = False,
    ) -> None:
        super().__init__(observation_space, features_dim=1)
        self.normalizes = normalize_observations
        flat = NormalizingExtractor if normalize_observations else FlattenExtractor
        extractors: list[BaseFeaturesExtractor] = []
        for key, space in observation_space.spaces.items():
            if 0 in (space.shape or ()):
                raise UnsupportedObservationError(
                    f"The observation {key!r} is empty, {space}: leave it out, for instance by "
                    "gymnasium.wrappers.FlattenObservation and MlpPolicy."
                )
            if is_image_space(space, normalized_image=normalized_image):
                assert isinstance(space, spaces.Box)
                extractors.append(PixelExtractor(space, cnn_output_dim, num_channels, normalized_image))
            else:
                extractors.append(flat(space))
        # A list in the order of the keys, because some keys are not valid names of modules
        self.keys = list(observation_space.spaces)
        self.extractors = nn.ModuleList(extractors)
        self._features_dim = sum(extractor.features_dim for extractor in extractors)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: tensors ``[B, ...]`` by key
        :return: ``[B, features_dim]``
        """
        parts = zip(self.keys, self.extractors, strict=True)
        return th.cat([extractor(observations[key]) for key, extractor in parts], dim=-1)

    def observe(self, observations: dict[str, th.Tensor], counts: th.Tensor) -> None:
        """See :meth:`NormalizingExtractor.observe`."""
        for key, extractor in zip(self.keys, self.extractors, strict=True):
            if isinstance(extractor, NormalizingExtractor):
                extractor.observe(observations[key], counts)


def _in_one_batch(observations: th.Tensor, space: spaces.Space) -> th.Tensor:
    """
    :param observations: ``[..., *shape]``
    :param space: their space
    :return: ``[B, *shape]``; ``[B, 1]`` if the space is a Box of a single number, as extractors need two dimensions
    """
    shape = (1,) if isinstance(space, spaces.Box) and not space.shape else (space.shape or ())
    return observations.reshape(-1, *shape)


class Encoder(nn.Module):
    """
    Encoder h of the world model: SB3's pre-processing, a features extractor and an MLP that ends in SimNorm.

    After a :class:`PixelExtractor` the MLP is left out, as in TD-MPC2; a single linear layer is kept if features and
    latent state differ in size.

    :param observation_space: space of the observations
    :param features_extractor: SB3 features extractor
    :param latent_dim: size D of the latent state
    :param enc_dim: size of the hidden layers
    :param num_enc_layers: number of layers, the output layer included
    :param simnorm_dim: features per simplex, None for no SimNorm
    :param normalize_images: whether images are divided by 255
    :param image_augmentation: whether images may be shifted at random
    :param layer_norm: whether the layers of the MLP are normed by LayerNorm
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        features_extractor: BaseFeaturesExtractor,
        latent_dim: int,
        enc_dim: int = 256,
        num_enc_layers: int = 2,
        simnorm_dim: int | None = 8,
        normalize_images: bool = True,
        image_augmentation: bool = True,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.observation_space = observation_space
        self.normalize_images = normalize_images
        self.features_extractor = features_extractor
        features_dim = features_extractor.features_dim
        if isinstance(features_extractor, PixelExtractor):
            linear = nn.Identity() if features_dim == latent_dim else nn.Linear(features_dim, latent_dim)
            self.head = nn.Sequential(linear, latent_norm(simnorm_dim)).apply(init_linear)
        else:
            hidden = [enc_dim] * max(num_enc_layers - 1, 1)
            self.head = make_mlp(features_dim, hidden, latent_dim, latent_norm(simnorm_dim), layer_norm)
        self.augments = image_augmentation and bool(self._image_keys())

    def _image_keys(self) -> list[str | None]:
        """
        :return: keys of the image observations, ``[None]`` if the observation itself is one
        """

        def is_image(space: spaces.Space) -> bool:
            return is_image_space(space, normalized_image=not self.normalize_images) and len(space.shape or ()) == 3

        if isinstance(self.observation_space, spaces.Dict):
            return [key for key, space in self.observation_space.spaces.items() if is_image(space)]
        return [None] if is_image(self.observation_space) else []

    def forward(self, observations: PyTorchObs, shift: th.Tensor | None = None) -> th.Tensor:
        """
        :param observations: raw observations ``[..., *shape]`` (or a dict of them), any number of leading dimensions
        :param shift: random shifts of the images ``[..., 2]``, see :func:`random_shift`; none if None
        :return: latent states ``[..., D]``
        """
        flat, batch_shape = self.in_one_batch(observations)
        if shift is not None and self.augments:
            shift = shift.reshape(-1, 2)
            for image in self._image_keys():
                if image is None:
                    flat = random_shift(flat, shift)
                else:
                    flat[image] = random_shift(flat[image], shift)
        preprocessed = preprocess_obs(flat, self.observation_space, normalize_images=self.normalize_images)
        z = self.head(self.features_extractor(preprocessed))
        return z.reshape(*batch_shape, z.shape[-1])

    def observe(self, observations: PyTorchObs, mask: th.Tensor) -> None:
        """
        Adds observations to the statistics by which they are normalised, if they are.

        :param observations: of replayed windows ``[H + 1, B, *shape]``
        :param mask: of the windows ``[H, B, 1]``
        """
        extractor: Any = self.features_extractor
        if getattr(extractor, "normalizes", False):
            flat, _ = self.in_one_batch(observations)
            extractor.observe(flat, observed(mask).reshape(-1, 1))

    def in_one_batch(self, observations: PyTorchObs) -> tuple[Any, tuple[int, ...]]:
        """
        :param observations: ``[..., *shape]``
        :return: the same ``[B, *shape]``, and the leading dimensions
        """
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            assert isinstance(observations, dict)
            key, sub = next(iter(space.spaces.items()))
            batch_shape = observations[key].shape[: observations[key].ndim - len(sub.shape or ())]
            return {name: _in_one_batch(observations[name], sub) for name, sub in space.spaces.items()}, batch_shape
        assert isinstance(observations, th.Tensor)
        return _in_one_batch(observations, space), observations.shape[: observations.ndim - len(space.shape or ())]
