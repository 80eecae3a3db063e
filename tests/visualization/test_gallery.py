"""From files to sheets: what is found, read, named and refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

import tiny_models
from ropim_mm.checkpoints import CheckpointError
from ropim_mm.engine.distributed import LaunchError
from ropim_mm.visualization import Gallery, find_images, load_model, read_image
from ropim_mm.visualization.gallery import sheet_names


def save(path, colour=(10, 20, 30), size=(9, 7)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size, colour).save(path)
    return path


def test_find_images(tmp_path):
    folder = tmp_path / 'in'
    wanted = [
        save(folder / 'a.png'),
        save(folder / 'deep/er/b.JPG'),
        save(folder / 'z.bmp'),
    ]
    (folder / 'notes.txt').write_text('no image')
    out = tmp_path / 'out'
    assert find_images(folder, out) == (folder, wanted)
    assert find_images(wanted[1], out) == (wanted[1].parent, [wanted[1]])
    with pytest.raises(LaunchError, match='nowhere not found'):
        find_images(tmp_path / 'nowhere', out)
    with pytest.raises(LaunchError, match=r'no images in folder .*\.png'):
        (tmp_path / 'empty').mkdir()
        find_images(tmp_path / 'empty', out)
    for inside in (folder, folder / 'deep/pictures'):
        with pytest.raises(LaunchError, match='is inside the folder of image'):
            find_images(folder, inside)


def test_read_image(tmp_path):
    pixels = read_image(save(tmp_path / 'a.png'))
    assert pixels.shape == (7, 9, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 20, 30)).all()  # red, green, blue


def test_sheet_names_differ():
    files = [
        Path('in/a.jpg'),
        Path('in/a.png'),
        Path('in/overview.png'),
        Path('in/sub/a.png'),
        Path('in/v1.5.png'),
    ]
    names = sheet_names(Path('in'), files)
    sub = str(Path('sub/a'))
    assert names == ['a_jpg', 'a_png', 'overview_png', sub, 'v1.5']


def test_gallery(make_model, tmp_path):
    folder, out = tmp_path / 'in', tmp_path / 'out'
    good = save(folder / 'good.png', (200, 50, 50))
    broken = folder / 'broken.png'
    broken.write_bytes(good.read_bytes()[:40])
    save(folder / 'sub/more.png')
    root, files = find_images(folder, out)
    gallery = Gallery(make_model(), out, seed=3)
    lines = list(gallery.draw(root, files))
    assert len(lines) == 3
    assert lines[0].startswith(f'{broken} cannot be read: ')
    assert lines[0].endswith('; left out')
    assert [file for file, _ in gallery.unreadable] == [broken]
    expected = {'good.png', 'overview.png', 'sub/more.png'}
    assert {
        file.relative_to(out).as_posix()
        for file in out.rglob('*')
        if file.is_file()
    } == expected
    sheet = np.array(Image.open(out / 'good.png'))
    assert (sheet == (200, 50, 50)).all(-1).sum() > 48 * 16
    overview = np.array(Image.open(out / 'overview.png'))
    assert (overview == (200, 50, 50)).all(-1).any()
    assert (overview == (10, 20, 30)).all(-1).any()

    # A second time over the first, to the same bytes.
    before = {name: (out / name).read_bytes() for name in expected}
    list(Gallery(make_model(), out, seed=3).draw(root, files))
    assert before == {name: (out / name).read_bytes() for name in expected}
    list(Gallery(make_model(), out, seed=4).draw(root, files))
    assert before['good.png'] != (out / 'good.png').read_bytes()


@pytest.mark.parametrize('method', tiny_models.METHODS)
def test_all_methods(method, tmp_path):
    """From a config and the checkpoint of a run to the sheets."""
    config, weights = tmp_path / 'config.py', tmp_path / 'epoch_1.pth'
    config.write_text(tiny_models.config_text(method, tmp_path / 'in'))
    trained = tiny_models.build(method)
    torch.save(dict(state_dict=trained.state_dict()), weights)
    model = load_model(Config.fromfile(config), str(weights), 'cpu')
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])
    files = [save(tmp_path / 'in' / f'{i}.png', (i, 90, 9)) for i in (50, 200)]
    out = tmp_path / 'out'
    lines = list(Gallery(model, out).draw(tmp_path / 'in', files))
    assert len(lines) == 2
    sheets = [np.array(Image.open(out / f'{i}.png')) for i in (50, 200)]
    overview = np.array(Image.open(out / 'overview.png'))
    # The row of pictures, 256 pixels high, then a table of those of
    # 192.
    rows = dict(ropim=0, lomar=2, rmae=2, conmim=4)[method]
    for sheet in sheets:
        assert 256 + 192 * rows < sheet.shape[0] < 450 + 240 * rows
    assert overview.shape[0] < 2 * 128 + 180


def test_images_are_not_overwritten(make_model, tmp_path):
    image = save(tmp_path / 'a.png')
    before = image.read_bytes()
    with pytest.raises(LaunchError, match='would be overwritten'):
        list(Gallery(make_model(), tmp_path).draw(tmp_path, [image]))
    assert image.read_bytes() == before


def named(filename, content):
    # Without a text, MMEngine opens the file.
    return Config(content, cfg_text='#', filename=filename)


def model_config(channels=3, **model):
    arch = dict(
        embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32
    )
    return named(
        'tiny.py',
        dict(
            default_scope='mmpretrain',
            data_preprocessor=dict(
                type='SelfSupDataPreprocessor', mean=[9.0], std=[2.0]
            ),
            model=dict(
                type='ropim_mm.ROPIM',
                backbone=dict(
                    type='ropim_mm.ROPIMViT',
                    arch=arch,
                    img_size=16,
                    patch_size=4,
                    in_channels=channels,
                    out_type='raw',
                    final_norm=True,
                    use_rel_pos_bias=False,
                    use_shared_rel_pos_bias=True,
                ),
                neck=dict(
                    type='ropim_mm.ROPIMNeck',
                    embed_dims=16,
                    patch_size=4,
                    out_channels=channels,
                ),
                head=dict(type='ropim_mm.ROPIMHead', patch_size=4),
            )
            | model,
        ),
    )


def test_load_model(tmp_path):
    from mmpretrain.registry import MODELS

    cfg = model_config()
    with MODELS.switch_scope_and_registry('mmpretrain'):
        source = MODELS.build(cfg.model)
    source.init_weights()
    file = tmp_path / 'whole.pth'
    torch.save(dict(state_dict=source.state_dict()), file)

    model = load_model(cfg, str(file), 'cpu')
    assert not model.training
    assert model.data_preprocessor.mean.item() == 9.0
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name

    # Another size: tables are fitted, as in fine-tuning.
    cfg = model_config()
    cfg.model.backbone.img_size = 32
    larger = load_model(cfg, str(file), 'cpu')
    table = larger.backbone.rel_pos_bias.relative_position_bias_table
    assert table.shape == (15 * 15 + 3, 2)

    with pytest.raises(LaunchError, match=r'tiny\.py: .*no_such_device'):
        load_model(model_config(), str(file), 'no_such_device')


def test_load_model_checks_the_coverage(tmp_path):
    from mmpretrain.registry import MODELS

    cfg = model_config()
    with MODELS.switch_scope_and_registry('mmpretrain'):
        state = MODELS.build(cfg.model).state_dict()
    file = tmp_path / 'encoder.pth'
    torch.save({k: v for k, v in state.items() if 'neck' not in k}, file)
    with pytest.raises(CheckpointError, match=r"prefix 'neck\.'"):
        load_model(cfg, str(file), 'cpu')
    del state['backbone.layers.0.gamma_1']
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=r'layers\.0\.gamma_1'):
        load_model(cfg, str(file), 'cpu')


def test_load_model_refuses_other_models(tmp_path):
    model = dict(type='ImageClassifier', backbone=dict(type='LeNet5'))
    cfg = named('classify.py', dict(model=model))
    message = r'classify\.py: there are no pictures of a ImageClassifier'
    with pytest.raises(LaunchError, match=message):
        load_model(cfg, 'none.pth')
    with pytest.raises(LaunchError, match=r'empty\.py has no model'):
        load_model(named('empty.py', {}), 'none.pth')
    with pytest.raises(LaunchError, match='in_channels=2'):
        load_model(model_config(channels=2), 'none.pth')
