import pytest
import torch
from torch.nn import functional

from glr_dist.errors import UserError
from glr_dist.losses import (
    LOSSES,
    binary_cross_entropy,
    cross_entropy,
    expectation,
    hinge,
    jaccard,
    mse,
    per_example,
    top5,
    zero_one,
)
from glr_dist.noise import Gaussian


def test_cross_entropy_is_torchs_with_its_gradient() -> None:
    torch.manual_seed(0)
    outputs = (30 * torch.randn(50, 7, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(7, (50,))
    found, expected = cross_entropy(outputs, targets), functional.cross_entropy(outputs, targets, reduction="none")
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(loss.sum(), outputs)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_cross_entropy_of_huge_scores_is_finite() -> None:
    outputs = torch.tensor([[1e30, -1e30], [1e30, 1e30]])
    assert cross_entropy(outputs, torch.tensor([1, 0])).isfinite().all()


def test_zero_one_counts_the_wrong_ones() -> None:
    outputs = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.4]], dtype=torch.float64)
    found = zero_one(outputs, torch.tensor([1, 1, 0]))
    assert found.tolist() == [0.0, 1.0, 1.0]
    assert found.dtype == outputs.dtype


@pytest.mark.parametrize("shape", [(), (6,), (4, 5), (3, 3, 3)], ids=str)
@pytest.mark.parametrize("ignored", [False, True])
def test_cross_entropy_of_tokens_and_pixels_is_torchs(shape: tuple[int, ...], ignored: bool) -> None:
    torch.manual_seed(0)
    outputs, targets = torch.randn(3, 7, *shape, dtype=torch.float64), torch.randint(7, (3, *shape))
    if ignored and shape:
        targets[:, 0] = targets[1] = -100  # a whole example, too
    expected = [
        functional.cross_entropy(outputs[i : i + 1], targets[i : i + 1]).nan_to_num() for i in range(len(outputs))
    ]
    torch.testing.assert_close(cross_entropy(outputs, targets), torch.stack(expected))
    torch.testing.assert_close(cross_entropy(outputs.movedim(1, -1), targets), torch.stack(expected))
    wrong = (outputs.argmax(1) != targets) & (targets != -100)
    count = (targets != -100).reshape(3, -1).sum(1).clamp(min=1)
    torch.testing.assert_close(zero_one(outputs, targets), wrong.reshape(3, -1).sum(1) / count.double())


@pytest.mark.parametrize("wrong", [-1, 7])
@pytest.mark.parametrize("shape", [(), (6,)], ids=str)
def test_a_class_out_of_range_is_refused(shape: tuple[int, ...], wrong: int) -> None:
    """Only -100 marks tokens and pixels that do not count."""
    outputs, targets = torch.randn(3, 7, *shape), torch.randint(7, (3, *shape))
    targets[2] = wrong
    with pytest.raises(RuntimeError, match="out of bounds"):
        cross_entropy(outputs, targets)
    expected = expectation(zero_one, Gaussian())
    assert expected is not None
    with pytest.raises(RuntimeError, match="out of bounds"):
        expected(outputs, targets, torch.tensor(1.0))


def test_losses_are_those_of_torch() -> None:
    torch.manual_seed(0)
    outputs, classes = torch.randn(6, 4, dtype=torch.float64), torch.randint(4, (6,))
    labels = functional.one_hot(classes, 4).double()
    for targets in (classes, labels):
        torch.testing.assert_close(mse(outputs, targets), (outputs - labels).square().mean(1))
        expected = functional.binary_cross_entropy_with_logits(outputs, labels, reduction="none").mean(1)
        torch.testing.assert_close(binary_cross_entropy(outputs, targets), expected)
    most = [max(z[j] for j in range(4) if j != y) for z, y in zip(outputs, classes, strict=True)]
    own = outputs[torch.arange(6), classes]
    torch.testing.assert_close(hinge(outputs, classes), (1 + torch.stack(most) - own).clamp(min=0))


def test_top5_and_jaccard_count() -> None:
    outputs = torch.arange(8.0).repeat(8, 1)
    assert top5(outputs, torch.arange(8)).tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    masks = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]])
    found = torch.tensor([[1.0, -1, 1, -1], [-1, -1, -1, -1], [-1, 1, 1, 1]])
    torch.testing.assert_close(jaccard(found, masks), torch.tensor([2 / 3, 0, 1]))


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (cross_entropy, (5, 3), (5, 3)),
        (cross_entropy, (5, 3, 4), (5,)),
        (zero_one, (5,), (5,)),
        (mse, (5, 3), (5, 2)),
        (binary_cross_entropy, (5, 3, 2), (5,)),
        (jaccard, (5, 3), (5, 1)),
    ],
)
def test_targets_that_do_not_fit_the_outputs_are_refused(loss, outputs, targets) -> None:
    with pytest.raises(UserError, match=r"loss: .*targets"):
        loss(torch.randn(outputs), torch.zeros(targets, dtype=torch.long))


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_one_value_for_each_example(name: str) -> None:
    values = LOSSES[name](torch.randn(5, 8), torch.randint(3, (5,)))
    assert per_example(values, 5) is values
    one_by_one = [LOSSES[name](torch.eye(3)[i : i + 1], torch.tensor([1])) for i in range(3)]
    torch.testing.assert_close(LOSSES[name](torch.eye(3), torch.tensor([1, 1, 1])), torch.cat(one_by_one))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (torch.tensor(1.0), r"shape \(4,\) for 4 examples, got shape \(\)"),
        (torch.zeros(5), r"shape \(4,\) for 4 examples, got shape \(5,\)"),
        (torch.zeros(4, 1), r"shape \(4,\) for 4 examples, got shape \(4, 1\)"),
        (0.5, r"shape \(4,\) for 4 examples, got float"),
    ],
)
def test_a_loss_that_is_reduced_or_of_another_shape_is_refused(values: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        per_example(values, 4)  # type: ignore[arg-type]


def test_a_boolean_loss_becomes_a_number() -> None:
    found = per_example(torch.tensor([True, False]), 2)
    assert found.dtype == torch.get_default_dtype()
    assert found.tolist() == [1.0, 0.0]
