"""The trainer: gradients of micro-batches, rates, the average of the weights, and what a broken save leaves."""

import signal

import pytest
import torch

from frameattn.training import create_trainer, read_config
from frameattn.training.files import load_state
from frameattn.training.signals import stop_signals

CPU = torch.device("cpu")


def test_interrupted_save_leaves_the_old_state(tiny_config, tmp_path, monkeypatch):
    trainer = create_trainer(read_config(tiny_config), tmp_path, CPU)
    trainer.save()
    monkeypatch.setattr(torch, "save", lambda state, path: (path.write_bytes(b"half"), exec("raise OSError")))
    with pytest.raises(OSError):
        trainer.save()
    assert load_state(tmp_path / "state.pt")["step"] == 0


def test_accumulated_micro_batches_have_the_mean_gradient(tiny_config, tmp_path):
    config = read_config(tiny_config, dict(accumulation=2, stages=None, batch=2, steps=4))
    config.model.arguments["class_dropout_prob"] = 0.0
    trainer = create_trainer(config, tmp_path, CPU)
    first, second = trainer.draws[0], trainer.draws[1]
    assert not torch.equal(first.x, second.x)
    losses = [
        trainer.diffusion.training_losses(trainer.model, d.x, d.t, d.conditions, d.noise)["loss"].mean()
        for d in (first, second)
    ]
    expected = torch.autograd.grad(sum(losses) / 2, list(trainer.parameters.values()), allow_unused=True)
    expected_norm = torch.nn.utils.get_total_norm([g for g in expected if g is not None])
    totals, norm = trainer._train_step(iter([first, second]))
    torch.testing.assert_close(norm, expected_norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(totals[0], (sum(losses) / 2).detach())


def test_learning_rate_schedule(tiny_config, tmp_path):
    trainer = create_trainer(read_config(tiny_config, dict(learning_rate=1, final_fraction=0.1)), tmp_path, CPU)
    trainer.total_steps = 100
    assert trainer.learning_rate(0) == pytest.approx(0.5 * 1.0)  # warmup: 2
    assert trainer.learning_rate(50) == pytest.approx(0.55)
    assert trainer.learning_rate(100) == pytest.approx(0.1)
    trainer.config.schedule = "constant"
    assert trainer.learning_rate(99) == 1.0


def test_average_follows_faster_in_the_beginning(tiny_config, tmp_path):
    trainer = create_trainer(read_config(tiny_config), tmp_path, CPU)
    name = next(iter(trainer.ema))
    start = trainer.ema[name].clone()
    with torch.no_grad():
        trainer.parameters[name].add_(1.0)
    trainer._update_average()
    torch.testing.assert_close(trainer.ema[name], start + (1 - 1 / 10))


@pytest.fixture
def interruptible():
    """As in the foreground: a shell has its background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_second_signal_acts_as_before_or_not_at_all(interruptible):
    with stop_signals() as received:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT]
    with stop_signals(repeated=True) as received:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert received == [signal.SIGINT] * 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
