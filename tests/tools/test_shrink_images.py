"""shrink_images.py from the command line, and training on its results."""

import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

import tiny_models
from ropim_mm.datasets import ImageZipMap

TOOL = 'dataset_converters/shrink_images.py'

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """16 images of 60 to 75 x 48 px in 2 folders, JPEG and PNG."""
    root = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    for i in range(16):
        pixels = random.integers(0, 256, (6, 5, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((48, 60 + i))
        folder = root / f'class{i % 2}'
        folder.mkdir(exist_ok=True)
        image.save(folder / f'{i:02}.{("JPEG", "png")[i % 3 == 2]}')
    return root


@pytest.fixture(scope='module')
def small(call, photos, tmp_path_factory):
    """What the tool makes of them in one go, with a short side of 40."""
    out = tmp_path_factory.mktemp('small') / 'out'
    call(TOOL, photos, out, '--short-side', 40, '--quality', 80)
    return out


def test_a_comparison_takes_no_settings(call, photos, small):
    options = ('--compare', 5, '--quality', 50)
    text = call(TOOL, photos, small, *options, status=2)
    assert '--compare makes nothing: no --quality with it' in text


def test_crops_are_compared(call, photos, small):
    text = call(TOOL, photos, small, '--compare', 5)
    found = re.search(r'5 images, .*: mean difference ([0-9.]+) of 255', text)
    assert 0 < float(found[1]) < 10
    assert '5/5' in text


def test_shards_then_verification_and_repair(call, photos, tmp_path):
    out = tmp_path / 'out'
    settings = ('--short-side', 40, '--quality', 80, '--workers', 2)
    text = call(TOOL, photos, out, *settings, '--shard', '1/2')
    assert '8 images: smaller ones of 8 made, of 0 there before' in text
    assert 'times smaller than the originals' in text
    assert '8/8' in text and 'image/s' in text  # the bar, though no terminal
    assert json.loads((out / 'shrink_images.json').read_text()) == dict(
        short_side=40, quality=80, subsampling='4:2:0', filter='lanczos'
    )

    whole = (out / 'class1/03.JPEG').read_bytes()
    (out / 'class1/03.JPEG').write_bytes(whole[:-9] + b'x' + whole[-8:])
    text = call(TOOL, photos, out, '--verify', status=1)
    assert 'broken: smaller ones of class1/03.JPEG: damaged: wrong' in text
    assert 'missing: smaller ones of class0/00.JPEG' in text
    assert '16 images: smaller ones of 7 are in order, 8 missing, 1' in text

    # One setting named, the others are those of the folder.
    text = call(TOOL, photos, out, '--repair', '--short-side', 40)
    assert '16 images: smaller ones of 9 made, of 7 there before' in text
    assert (out / 'class1/03.JPEG').read_bytes() == whole


def test_bad_settings_are_named(call, photos, tmp_path):
    out = tmp_path / 'out'
    text = call(TOOL, photos, out, '--quality', 101, status=1)
    assert text.rstrip().endswith(
        'error: quality is 101; expected a whole number from 1 to 100'
    )
    assert not out.exists()


def test_training_on_the_smaller_images(call, small, history, tmp_path):
    # Their maps are made from them, and found by their names.
    maps, work_dir = tmp_path / 'maps', tmp_path / 'run'
    text = call(
        'dataset_converters/create_fh_masks.py',
        small,
        maps,
        *('--scales', 50, '--min-sizes', 20),
    )
    assert '16 images: maps of 16 made' in text
    assert (maps / 'class0/02.png').exists()
    text = tiny_models.config_text('rmae', small)
    for old, new in (
        (
            f"type='CustomDataset', data_root={str(small)!r}",
            "type='ropim_mm.RegionDataset', data_prefix=dict("
            f'img_path={str(small)!r}, region_path={str(maps)!r})',
        ),
        (
            "{'type': 'ropim_mm.MakeRegions', 'scales': (50,), "
            "'min_sizes': (20,)}",
            "{'type': 'ropim_mm.LoadRegions'}",
        ),
    ):
        assert old in text
        text = text.replace(old, new)
    config = tmp_path / 'config.py'
    config.write_text(text)
    call('train.py', config, '--work-dir', work_dir)
    losses = history(work_dir, 'loss')
    assert len(losses) == 4  # of 16 images, 4 a batch
    assert np.isfinite(list(losses.values())).all()


def test_an_archive_with_a_list_goes_on_to_work(call, photos, tmp_path):
    def pack(folder, path):
        with zipfile.ZipFile(path, 'w') as file:
            for each in sorted(p for p in folder.rglob('*') if p.is_file()):
                file.write(each, each.relative_to(folder).as_posix())

    names = sorted(
        p.relative_to(photos).as_posix() for p in photos.glob('*/*')
    )
    large, small = tmp_path / 'large.zip', tmp_path / 'small.zip'
    pack(photos, large)
    call(TOOL, large, tmp_path / 'out', '--short-side', 40)
    pack(tmp_path / 'out', small)
    (tmp_path / 'train_map.txt').write_text(
        ''.join(f'{name}\t{name[5]}\n' for name in names)
    )
    for archive, side in ((large, 48), (small, 40)):
        dataset = ImageZipMap(
            str(archive),
            'train_map.txt',
            pipeline=[dict(type='ropim_mm.LoadImage')],
        )
        assert len(dataset) == 16
        for i in range(16):
            assert dataset[i]['img_path'] == f'{archive}/{names[i]}'
            assert dataset[i]['gt_label'] == int(names[i][5])
            assert dataset[i]['img'].shape[1] == side
