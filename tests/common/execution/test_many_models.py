"""Many compiled agents in one process, as in a sweep: the last one is compiled as the first one was."""

import warnings
from typing import Any

import pytest
import torch as th

from sb3_mpc.common.execution.acceleration import compile_function


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """:return: the graphs that have been compiled, by a backend that runs them as they are"""
    found: list[Any] = []
    compile_ = th.compile

    def backend(graph: Any, inputs: Any) -> Any:
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(th, "compile", lambda function, **kwargs: compile_(function, backend=backend, **kwargs))
    return found


class Owner:
    """An agent, as far as the compiler is concerned."""

    def __init__(self, weight: float) -> None:
        self.weight = th.full((2,), weight)

    def update(self, x: th.Tensor) -> th.Tensor:
        """:return: some numbers"""
        return (self.weight * x).sum()


def test_twenty_owners_of_one_method(graphs: list[Any]) -> None:
    owners = [Owner(i) for i in range(20)]
    functions = [compile_function(owner.update) for owner in owners]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i, function in enumerate(functions):
            assert function(th.ones(2)).item() == 2 * i
    assert len(graphs) == 20


def test_limit_is_told(graphs: list[Any]) -> None:
    function = compile_function(Owner(1.0).update)
    limit = th._dynamo.config.recompile_limit
    for size in range(2, 2 + limit):
        function(th.ones(size, 1))
    assert len(graphs) == limit
    with pytest.warns(UserWarning, match="Owner.update was compiled for as many different inputs .*recompile_limit"):
        assert function(th.ones(50, 1)).item() == 100
    assert len(graphs) == limit and function(th.ones(2, 1)).item() == 4
