"""The benchmark tools, by command line in processes of their own."""

import json
from statistics import median

import pytest

import tiny_models

pytestmark = pytest.mark.slow


def test_step_of_a_config_against_itself(call, configs, tmp_path):
    config, result = configs['pretrain'], tmp_path / 'out' / 'step.json'
    output = call(
        'analysis_tools/benchmark_step.py',
        config,
        '--vs',
        config,
        '--batch-size',
        8,
        '--dtype',
        'fp32',
        '--iters',
        5,
        '--threads',
        1,
        '--profile',
        '--floor',
        '--json',
        result,
    )
    report = json.loads(result.read_text())
    assert report['threads'] == 1
    assert f'{report["device"]}, 1 CPU thread(s), torch' in output
    assert 0.5 < median(report['ratios']) < 2
    assert len(report['ratios']) == len(report['cpu_ratios']) == 5
    for letter, one in zip('AB', report['results'], strict=True):
        assert f'{letter}: {config}: ROPIM' in output
        assert one['dtype'] == 'float32'
        assert len(one['rounds']) == len(one['matrix_rates']) == 5
        assert 0 < one['fraction'] < 1.5
        assert one['images_per_second'] == 8 / one['seconds']
        shares = one['part_shares']['projection and loss']
        assert all(0 < share < 1 for share in shares)
        # A model of 16 thousand parameters needs no gigabyte, but something.
        assert 0.001 < one['peak_memory_gib'] < 1
        share = f'{median(shares):.2%} of the step'
        assert f'{letter}: projection and loss: {share}' in output
        alone = one['product_seconds']
        assert len(alone) == 5 and 0 < median(alone) < one['seconds']
        alone = f'{letter}: its matrix products alone: {median(alone):.4f} s'
        assert alone in output
    assert 'products of A less products of B: ' in output
    ratio = f'median {median(report["ratios"]):.3f}'
    assert f'time A / time B, pair by pair: {ratio}' in output
    assert report['flop_ratio'] == 1
    assert 'FLOPs an image of A / of B: 1.000' in output
    assert output.count('Self CPU time total') == 2


def test_step_without_memory_or_projection(call, configs):
    output = call(
        'analysis_tools/benchmark_step.py',
        configs['finetune'],
        '--iters',
        1,
        '--no-memory',
        '--cfg-options',
        'model.backbone.drop_path_rate=0.1',
    )
    assert 'ImageClassifier' in output
    assert 'trained in float32' in output
    lines = [line.split() for line in output.splitlines()]
    assert ['peak', 'memory', '-'] in lines
    assert 'of the step, forward and backward' not in output


def test_step_of_a_config_against_a_variant(call, configs, tmp_path):
    result = tmp_path / 'step.json'
    output = call(
        'analysis_tools/benchmark_step.py',
        configs['pretrain'],
        '--iters',
        1,
        '--no-memory',
        '--vs-cfg-options',
        'model.backbone.arch.num_layers=1',
        '--json',
        result,
    )
    report = json.loads(result.read_text())
    a, b = report['results']
    assert a['options'] == {}
    assert b['options'] == {'model.backbone.arch.num_layers': 1}
    assert report['flop_ratio'] == pytest.approx(
        a['gflop_per_image'] / b['gflop_per_image']
    )
    ratio = report['flop_ratio']
    assert ratio > 1
    assert f'FLOPs an image of A / of B: {ratio:.3f}' in output
    assert report['image_ratios'] == pytest.approx(
        [a['images_per_second'] / b['images_per_second']]
    )


def test_step_of_no_config(call):
    output = call('analysis_tools/benchmark_step.py', 'no.py', status=1)
    assert 'error: config file no.py not found' in output
    assert 'Traceback' not in output


def test_loader_of_a_config_against_itself(call, configs, tmp_path):
    config, result = configs['pretrain'], tmp_path / 'loader.json'
    output = call(
        'analysis_tools/benchmark_loader.py',
        config,
        '--vs',
        config,
        '--workers',
        2,
        '--batches',
        20,
        '--rounds',
        3,
        '--json',
        result,
    )
    report = json.loads(result.read_text())
    assert 0.3 < median(report['ratios']) < 3
    for letter, one in zip('AB', report['results'], strict=True):
        total = one['images_per_second']
        assert total == 2 * one['images_per_second_per_worker']
        assert len(one['rounds']) == 3
        line = f'{letter}: {total:.1f} images/s, {total / 2:.1f} a worker'
        assert line in output


def test_loader_against_torchvision_and_a_step(call, images, tmp_path):
    config, result = tmp_path / 'ropim.py', tmp_path / 'loader.json'
    config.write_text(tiny_models.config_text('ropim', images))
    output = call(
        'analysis_tools/benchmark_loader.py',
        config,
        '--vs',
        'torchvision',
        '--batches',
        2,
        '--rounds',
        1,
        '--step',
        1e6,
        '--json',
        result,
    )
    report = json.loads(result.read_text())
    assert f'JPEGs in ropim_mm.LoadImage by {report["decoder"]}' in output
    difference = report['difference']
    assert difference['images'] == 16
    assert 0 <= difference['mean'] < 0.5
    crops = f'same crops of 16 images by A and B ({difference["filter"]}): '
    mean = f'mean difference {difference["mean"]:.3f} of 255 levels'
    assert crops + mean in output
    assert 0.9 < report['share_waiting'] < 1
    share = f'{report["share_waiting"]:.0%}'
    assert 'A: a step takes 1000000.0 images/s, and ' in output
    assert f'training would wait for data {share} of the time. ' in output


def test_loader_with_and_without_regions(call, images, tmp_path):
    config, result = tmp_path / 'rmae.py', tmp_path / 'loader.json'
    config.write_text(tiny_models.config_text('rmae', images))
    output = call(
        'analysis_tools/benchmark_loader.py',
        config,
        '--batches',
        2,
        '--rounds',
        2,
        '--vs-cfg-options',
        'train_dataloader.dataset.pipeline.1.scales=50,50,50,50,50,50,50,50',
        'train_dataloader.dataset.pipeline.1.min_sizes=9,9,9,9,9,9,9,9',
        '--json',
        result,
    )
    assert output.count(f'{config}, 16 images, batches of 4') == 2
    ratios = json.loads(result.read_text())['ratios']
    assert all(ratio > 1.5 for ratio in ratios)


def test_loader_without_data(call, configs, tmp_path):
    output = call(
        'analysis_tools/benchmark_loader.py',
        configs['pretrain'],
        '--cfg-options',
        f'train_dataloader.dataset.data_root={tmp_path}/none',
        status=1,
    )
    assert f'{tmp_path}/none not found' in output
    assert 'Traceback' not in output


def test_cost_of_a_schedule(call, configs):
    output = call(
        'analysis_tools/estimate_cost.py',
        configs['pretrain'],
        *('--gpus', 2, 16, '--images', 800, '--fsdp', '--tflops', 1.5),
    )
    assert 'FSDP, assumed: 1.5 TFLOP/s a GPU in training, 150 GB/s' in output
    assert 'between them, 800 images\n' in output
    assert '200 steps of 8 images' in output  # 2 epochs
    rows = [line for line in output.splitlines() if line.startswith('| ')]
    assert [row.split()[1] for row in rows[2:]] == ['2', '16']
    refused = call(
        'analysis_tools/estimate_cost.py',
        configs['pretrain'],
        *('--tflops', 0),
        status=2,
    )
    assert '--tflops is 0.0; expected > 0' in refused
