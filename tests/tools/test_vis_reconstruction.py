"""``tools/visualization/vis_reconstruction.py`` as a user runs it."""

import shutil

import numpy as np
import pytest
from PIL import Image

TOOL = 'visualization/vis_reconstruction.py'


@pytest.mark.slow
def test_sheets_and_overview(call, configs, pretrained, tmp_path):
    _, work_dir = pretrained
    folder = tmp_path / 'some images'
    folder.mkdir()
    colours = {'red.png': (220, 20, 20), 'blue.jpg': (20, 20, 220)}
    for name, colour in colours.items():
        Image.new('RGB', (50, 40), colour).save(folder / name)
    (folder / 'broken.png').write_bytes(b'no image at all')
    out = tmp_path / 'pictures of them'
    printed = call(
        TOOL,
        configs['pretrain'],
        work_dir / 'epoch_2.pth',
        folder,
        out,
        *('--device', 'cpu', '--seed', '1'),
        cwd=tmp_path,
    )
    written = sorted(path.name for path in out.iterdir())
    assert written == ['blue.png', 'overview.png', 'red.png']
    red = np.array(Image.open(out / 'red.png'))
    assert (red == (220, 20, 20)).all(-1).sum() >= 256 * 256
    assert f'{folder / "broken.png"} cannot be read: not an image' in printed
    assert '[3/3] red.png -> ' in printed
    last = printed.strip().splitlines()
    assert any('2 pictures and overview.png' in line for line in last)
    assert any('1 unreadable images left out' in line for line in last)


@pytest.mark.slow
def test_nothing_readable(call, configs, pretrained, tmp_path):
    _, work_dir = pretrained
    (tmp_path / 'broken.png').write_bytes(b'no image at all')
    out = tmp_path / 'out'
    printed = call(
        TOOL,
        configs['pretrain'],
        work_dir / 'epoch_2.pth',
        tmp_path / 'broken.png',
        out,
        status=1,
    )
    assert 'none of 1 images could be read' in printed
    assert not out.exists()


@pytest.mark.slow
def test_first_images_only(call, configs, pretrained, images, tmp_path):
    _, work_dir = pretrained
    folder = tmp_path / 'in'
    shutil.copytree(images, folder)
    printed = call(
        TOOL,
        configs['pretrain'],
        work_dir / 'epoch_2.pth',
        folder,
        tmp_path / 'out',
        *('--max-images', '3'),
        *('--cfg-options', 'model.backbone.img_size=48'),
    )
    assert 'The first 3 of 16 images (--max-images)' in printed
    written = sorted((tmp_path / 'out').rglob('*.png'))
    assert [path.name for path in written] == [
        '00.png',
        '02.png',
        '04.png',
        'overview.png',
    ]
