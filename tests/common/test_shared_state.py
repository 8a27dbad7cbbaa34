"""Products with a state that is the same for many actions are computed once."""

import pytest
import torch as th

from sb3_mpc.common.networks.world_model import WorldModel


class OwnInputs(WorldModel):
    """A model that treats actions in a way of its own."""

    def inputs(self, z: th.Tensor, action: th.Tensor | None = None) -> th.Tensor:
        return super().inputs(z, None if action is None else 2 * action)


@pytest.mark.parametrize("hidden", [[32, 32], []], ids=["hidden layers", "linear"])
@pytest.mark.parametrize("kind", [WorldModel, OwnInputs])
def test_an_expanded_state_gives_what_its_copies_give(kind: type[WorldModel], hidden: list[int]) -> None:
    th.manual_seed(0)
    model = kind(th.nn.Identity(), action_dim=3, latent_dim=16, hidden=hidden)
    th.nn.init.normal_(model.reward_head[-1].weight)
    z, actions = th.rand(2, 1, 16), th.rand(2, 5, 3)
    expanded = z.expand(-1, 5, -1)
    for function in (model.next, model.reward):
        th.testing.assert_close(function(expanded, actions), function(expanded.clone(), actions))
