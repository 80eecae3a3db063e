"""What a schedule costs: the arithmetic, by hand."""

import pytest
from mmengine.config import Config

import tiny_models
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.evaluation.cost import (
    Rates,
    Schedule,
    estimate,
    schedule_of,
    table,
)

# 1 GFLOP an image at 1 TFLOP/s: a millisecond an image.
SCHEDULE = Schedule(batch=64, steps=3600, flops=1e9, parameters=10**6)
RATES = Rates(tflops=1.0, node_gbs=8.0, network_gbs=0.5, gpus_per_node=4)


def test_one_gpu_sends_nothing():
    cost = estimate(SCHEDULE, 1, RATES)
    assert (cost.sent, cost.sending, cost.scaling) == (0, 0, 1)
    assert cost.step == pytest.approx(0.064)
    assert cost.hours == cost.gpu_hours == pytest.approx(0.064)


def test_sums_within_a_machine_hide_behind_the_backward_pass():
    cost = estimate(SCHEDULE, 4, RATES)
    assert cost.images == 16
    assert cost.sent == 3 / 4 * 8e6
    assert cost.sending == pytest.approx(6e6 / 8e9)
    assert cost.step == cost.compute == pytest.approx(0.016)
    assert cost.gpu_hours == pytest.approx(4 * 0.016)


def test_a_slow_network_is_waited_for():
    cost = estimate(SCHEDULE, 32, RATES)
    sending = 31 / 32 * 8e6 / 0.5e9
    assert cost.sending == pytest.approx(sending)
    assert cost.step == pytest.approx(0.002 + sending - 2 / 3 * 0.002)
    assert cost.scaling == pytest.approx(0.002 / cost.step)
    split = estimate(SCHEDULE, 32, RATES, sharded=True)
    assert split.sent == 1.5 * cost.sent  # three times instead of twice
    assert split.step == pytest.approx(0.002 + 1.5 * sending - 0.002)


def test_table():
    text = table(SCHEDULE, [estimate(SCHEDULE, n, RATES) for n in (4, 128)])
    assert '3,600 steps of 64 images, 1.0 GFLOP an image, 1.0 M para' in text
    assert '| 4 | 16 | 16.0 | 6 | 0.75 | 16.0 | 1.000 | 0.0 | 0 |' in text
    assert '\n| 128 | 0.50 | 0.5 | 8 |' in text


def config(tmp_path, **more):
    text = tiny_models.config_text('lomar', tmp_path, size=32)
    path = tmp_path / 'config.py'
    path.write_text(text + '\n'.join(f'{k} = {v!r}' for k, v in more.items()))
    return Config.fromfile(path), str(path)


def test_schedule_of_a_config(tmp_path):
    cfg, path = config(
        tmp_path,
        auto_scale_lr=dict(base_batch_size=32),
        train_cfg=dict(by_epoch=True, max_epochs=3),
    )
    schedule = schedule_of(cfg, path, {}, images=100)
    assert (schedule.batch, schedule.steps) == (32, 9)
    model = tiny_models.build('lomar')
    assert schedule.parameters == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )
    assert schedule.flops > 6 * 16 * schedule.parameters / 100
    cfg.train_cfg = dict(max_iters=7)
    assert schedule_of(cfg, path, {}).steps == 7
    cfg.auto_scale_lr = None
    with pytest.raises(LaunchError, match='no auto_scale_lr.base_batch_size'):
        schedule_of(cfg, path, {})
    cfg.default_scope = 'mmdet'
    with pytest.raises(LaunchError, match='config of mmdet; expected one of'):
        schedule_of(cfg, path, {})
