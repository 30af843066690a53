"""The bank: EMA with bias correction, keys, errors."""

import pytest
import torch

from iris_pipeline.checkpoints.memory_bank import MemoryBank, bank_key
from preprocessing.errors import TaskError


def tokens(value: float) -> tuple[torch.Tensor, ...]:
    return (torch.full((3, 4), value), torch.full((3, 2), -value))


def test_one_update_is_that_update() -> None:
    bank = MemoryBank(0.999)
    bank.update("ct/liver", tokens(5.0))
    deep, shallow = bank.get(["ct/liver"])
    assert deep.shape == (1, 1, 3, 4) and shallow.shape == (1, 1, 3, 2)
    torch.testing.assert_close(deep, torch.full((1, 1, 3, 4), 5.0), rtol=1e-4, atol=1e-4)


def test_running_mean_by_hand() -> None:
    bank = MemoryBank(0.5)
    for value in (1.0, 2.0, 4.0):
        bank.update("a/b", tokens(value))
    # T = 0.5*(0.5*(0.5*0 + 0.5*1) + 0.5*2) + 0.5*4 = 2.625, weight 1 - 0.5^3 = 0.875
    torch.testing.assert_close(bank.get(["a/b"])[0].unique(), torch.tensor([3.0]))


def test_stationary_tokens_come_back_unchanged() -> None:
    bank = MemoryBank(0.999)
    for _ in range(50):
        bank.update("a/b", tokens(2.0))
    torch.testing.assert_close(bank.get(["a/b"])[0].unique(), torch.tensor([2.0]), rtol=1e-4, atol=1e-4)


def test_classes_keep_the_order_asked_for_and_datasets_stay_apart() -> None:
    bank = MemoryBank()
    bank.update(bank_key("ct", "liver"), tokens(1.0))
    bank.update(bank_key("mr", "liver"), tokens(2.0))
    both = bank.get([bank_key("mr", "liver"), bank_key("ct", "liver")])[0]
    assert both.shape[1] == 2
    assert both[0, 0, 0, 0].item() == pytest.approx(2.0, rel=1e-3)
    assert both[0, 1, 0, 0].item() == pytest.approx(1.0, rel=1e-3)


def test_restore_is_the_inverse() -> None:
    bank = MemoryBank(0.9)
    bank.update("ct/left kidney", tokens(1.0))
    bank.update("ct/left kidney", tokens(3.0))
    bank.update("ct/liver", tokens(7.0))
    again = MemoryBank.restore(bank.momentum, bank.tensors(), bank.counts())
    assert again.keys() == ["ct/left kidney", "ct/liver"] and again.updates("ct/left kidney") == 2
    counted = again.counts()
    MemoryBank.restore(again.momentum, again.tensors(), counted).update("ct/liver", tokens(1.0))
    again.update("ct/liver", tokens(7.0))
    assert counted == bank.counts() == {"ct/left kidney": 2, "ct/liver": 1}, "of then, not of now"
    again = MemoryBank.restore(bank.momentum, bank.tensors(), bank.counts())
    for a, b in zip(bank.get(bank.keys()), again.get(bank.keys()), strict=True):
        assert torch.equal(a, b)


def test_a_class_name_may_hold_the_sign_between_key_and_level() -> None:
    bank = MemoryBank(0.9)
    bank.update(bank_key("ct", "left|right"), tokens(2.0))
    again = MemoryBank.restore(bank.momentum, bank.tensors(), bank.counts())
    for a, b in zip(bank.get(["ct/left|right"]), again.get(["ct/left|right"]), strict=True):
        assert torch.equal(a, b)


def test_half_precision_does_not_reach_the_mean() -> None:
    """1 and 1 + 1/128 are bfloat16, and there is none between them."""
    bank = MemoryBank(0.5)
    for value in (1.0, 1.0078125, 1.0078125):
        bank.update("a/b", tuple(level.bfloat16() for level in tokens(value)))
    # (0.125 * 1 + 0.75 * 1.0078125) / 0.875
    mean = bank.get(["a/b"])[0]
    assert mean.dtype == torch.float32
    torch.testing.assert_close(mean.unique(), torch.tensor([1 + 6 / 7 / 128]), rtol=0, atol=1e-6)


def test_bank_holds_no_graph() -> None:
    bank = MemoryBank()
    source = torch.ones(3, 4, requires_grad=True)
    bank.update("a/b", (source * 2,))
    assert not bank.get(["a/b"])[0].requires_grad


def test_unseen_class_is_named() -> None:
    bank = MemoryBank()
    bank.update("ct/liver", tokens(1.0))
    with pytest.raises(
        TaskError, match="holds ct/liver, but ct/spleen was asked for: give references with -r"
    ):
        bank.get(["ct/liver", "ct/spleen"])


@pytest.mark.parametrize("momentum", [1.0, -0.1, float("nan")])
def test_momentum_that_cannot_be(momentum: float) -> None:
    with pytest.raises(TaskError, match=rf"momentum must be 0 or more and under 1; got {momentum}\."):
        MemoryBank(momentum)


def test_without_momentum_the_latest_is_remembered() -> None:
    bank = MemoryBank(0.0)
    for value in (3.0, 7.0):
        bank.update("a/b", tokens(value))
    again = MemoryBank.restore(bank.momentum, bank.tensors(), bank.counts())
    assert torch.equal(again.get(["a/b"])[0], torch.full((1, 1, 3, 4), 7.0))
