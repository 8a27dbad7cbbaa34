"""Sizes of the networks: those of the papers, and the user's changes to them."""

from typing import Any, NamedTuple

from sb3_mpc.common.checks.arguments import check_argument, check_range

# Architectures by number of parameters in millions (TD-MPC2, appendix on scaling)
MODEL_SIZES: dict[int, dict[str, int]] = {
    1: dict(enc_dim=256, mlp_dim=384, latent_dim=128, num_enc_layers=2, num_q=2),
    5: dict(enc_dim=256, mlp_dim=512, latent_dim=512, num_enc_layers=2, num_q=5),
    19: dict(enc_dim=1024, mlp_dim=1024, latent_dim=768, num_enc_layers=3, num_q=5),
    48: dict(enc_dim=1792, mlp_dim=1792, latent_dim=768, num_enc_layers=4, num_q=5),
    317: dict(enc_dim=4096, mlp_dim=4096, latent_dim=1376, num_enc_layers=5, num_q=8),
}

MAX_SIZE, MAX_LAYERS = 2**20, 100  # far more than any network has

# Other latent sizes in the experiments on the 30 tasks of DMControl (mt30), and the size of the task embedding, which
# depends on the model there (official code)
MT30_TASKS = 30
MT30_LATENT_DIM = {19: 512}
TASK_DIM, MT30_TASK_DIM = 96, {5: 64, 19: 64, 48: 64}


def multitask_sizes(model_size: int, num_tasks: int) -> tuple[int | None, int]:
    """
    :param model_size: millions of parameters
    :param num_tasks: number of tasks
    :return: the papers' size of the latent state, None if it is the one for a single task; and of the task embedding
    """
    if num_tasks != MT30_TASKS:
        return None, TASK_DIM
    return MT30_LATENT_DIM.get(model_size), MT30_TASK_DIM.get(model_size, TASK_DIM)


class Sizes(NamedTuple):
    """
    Sizes of the networks of a world model.

    :param latent_dim: size D of the latent state
    :param enc_dim: size of the encoder's hidden layers
    :param num_enc_layers: number of layers of the encoder
    :param hidden: sizes of the hidden layers of all networks but the encoder and the policy prior
    :param prior_hidden: sizes of the hidden layers of the policy prior
    :param num_q: number M of value networks
    """

    latent_dim: int
    enc_dim: int
    num_enc_layers: int
    hidden: list[int]
    prior_hidden: list[int]
    num_q: int


def check_layers(name: str, layers: Any) -> None:
    """
    :param name: name of the argument, for the message
    :param layers: sizes of hidden layers, or None
    :raises ValueError: if it is neither, or a size is out of range
    """
    if layers is None:
        return
    if not isinstance(layers, (list, tuple)):
        raise ValueError(f"{name}={layers!r:.80} is not understood: use a list of sizes, such as [512, 512].")
    if len(layers) > MAX_LAYERS:
        raise ValueError(f"{name} has {len(layers)} layers: use at most {MAX_LAYERS}.")
    for size in layers:
        check_argument(f"A size in {name}", size, {int}, (1, MAX_SIZE))


def resolve_sizes(
    model_size: int,
    latent_dim: int | None,
    enc_dim: int | None,
    mlp_dim: int | None,
    num_enc_layers: int | None,
    num_q: int | None,
    net_arch: list[int] | dict[str, list[int]] | None,
    simnorm_dim: int | None,
) -> Sizes:
    """
    :param model_size: millions of parameters; determines the sizes that are None
    :param latent_dim: size of the latent state
    :param enc_dim: size of the encoder's hidden layers
    :param mlp_dim: size of the two hidden layers of all other networks, unless ``net_arch`` gives their sizes
    :param num_enc_layers: number of layers of the encoder
    :param num_q: number of value networks
    :param net_arch: sizes of the hidden layers; or a dict with those of the policy prior (``pi``) and of the other
        networks (``qf``)
    :param simnorm_dim: features per simplex of the latent state, None for no SimNorm
    :return: all sizes
    :raises ValueError: if a size is out of range or the sizes are inconsistent
    """
    if model_size not in MODEL_SIZES:
        raise ValueError(f"model_size={model_size} is unknown: use one of {sorted(MODEL_SIZES)}.")
    sizes = dict(MODEL_SIZES[model_size])
    given = dict(latent_dim=latent_dim, enc_dim=enc_dim, mlp_dim=mlp_dim, num_enc_layers=num_enc_layers, num_q=num_q)
    sizes.update({name: value for name, value in given.items() if value is not None})
    simplex = 1 if simnorm_dim is None else simnorm_dim
    for name, value in {**sizes, "simnorm_dim": simplex}.items():
        check_range(name, value, 1)
    if sizes["latent_dim"] % simplex:
        raise ValueError(f"latent_dim={sizes['latent_dim']} must be a multiple of simnorm_dim={simnorm_dim}.")
    arch = net_arch if isinstance(net_arch, dict) else {} if net_arch is None else dict(qf=net_arch, pi=net_arch)
    if not arch.keys() <= {"qf", "pi"}:
        raise ValueError(f"net_arch has the keys {sorted(arch)}: use qf (all other networks) and pi (policy prior).")
    given_layers = (arch.get("qf"), arch.get("pi"))
    for layers in given_layers:
        check_layers("net_arch", layers)
    hidden, prior_hidden = ([sizes["mlp_dim"]] * 2 if layers is None else list(layers) for layers in given_layers)
    return Sizes(sizes["latent_dim"], sizes["enc_dim"], sizes["num_enc_layers"], hidden, prior_hidden, sizes["num_q"])
