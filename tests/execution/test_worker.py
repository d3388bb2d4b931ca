"""The plain class behind the actors, without Ray: it computes what this process would."""

from __future__ import annotations

import pickle

import pytest
import torch
from ray import cloudpickle

from execution.variants import VARIANTS, batch, made, same
from glr_dist.estimators import Partial
from glr_dist.execution.inline import Inline
from glr_dist.execution.reproducible import reproducible
from glr_dist.execution.wire import unpacked
from glr_dist.execution.worker import Worker, program_of, state_of, tapes_for_items

CPU = torch.device("cpu")


def sent(value: object) -> object:
    """Returns a value as it arrives in another process."""
    return pickle.loads(pickle.dumps(value))


# Two threads would show in a convolution or a long sum: one network of each kind; the rest is long.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "threads"),
    [
        *((name, 1) for name in VARIANTS),
        *(
            pytest.param(name, 2, marks=[] if name in ("conditional", "mixed network") else pytest.mark.long)
            for name in VARIANTS
        ),
    ],
)
def test_a_worker_computes_the_items_and_tapes_that_inline_does(name, threads):
    net, (x, y), loss = made(name, Inline(1)), batch(name), VARIANTS[name][1]
    net.prepare(x)
    worker = Worker(CPU, threads)
    program = cloudpickle.dumps(program_of(net.estimator, net.bind(x, y, loss)))
    for number in range(2):  # the second time other numbers arrive in the same places
        net.step = number
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.01 * number)
        step = net.bind(x, y, loss)
        state = sent(state_of(step))
        with reproducible(), torch.no_grad(), net.network.hooked():
            for shared_pass in range(net.estimator.passes(step)):
                tapes = {examples: net.estimator.tape(step, shared_pass, examples) for examples in step.example_blocks}
                for examples, tape in tapes.items():
                    found = unpacked(sent(worker.tape(program, state, shared_pass, examples)), CPU)
                    for attribute in ("logits", "inputs", "starts"):
                        assert same(found[attribute], getattr(tape, attribute))
                    assert torch.equal(found["losses"], tape.losses)
                items = list(net.estimator.items(step, shared_pass))
                assert len(items) > 2
                payload = sent(tapes_for_items(step, tapes))
                results, seconds = worker.partials(program, state, payload, items)
                assert min(seconds) > 0
                for item, result in zip(items, unpacked(sent(results), CPU), strict=True):
                    partial = Partial(**result)
                    expected = net.estimator.partial(step, item, tapes[item.example_block])
                    assert same(partial.delta, expected.delta)
                    assert same(partial.grads, expected.grads)
                    assert same(partial.scales, expected.scales)
                    assert torch.equal(partial.loss, expected.loss)


def test_the_program_holds_no_data():
    net, (x, y) = made("conditional", Inline(1)), batch("conditional")
    net.prepare(x)
    few, many = (net.bind(x.repeat(n, 1, 1, 1), y.repeat(n)) for n in (1, 50))
    sizes = [len(cloudpickle.dumps(program_of(net.estimator, step))) for step in (few, many)]
    assert sizes[0] == sizes[1]
