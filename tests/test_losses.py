import pytest
import torch
from torch.nn import functional

from glr_dist.losses import LOSSES, cross_entropy, per_example, zero_one


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


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_gives_one_value_for_each_example(name: str) -> None:
    values = LOSSES[name](torch.randn(5, 3), torch.randint(3, (5,)))
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
