"""Label maps of whole datasets: complete, whatever happens to a run."""

import io
import json
import multiprocessing
import os
import random
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ropim_mm.datasets import conversion, fh_masks
from ropim_mm.datasets.fh_masks import (
    FHSettings,
    UnreadableSourceError,
    create_maps,
    verify_maps,
)
from ropim_mm.datasets.label_maps import (
    LabelMaps,
    decode_label_maps,
    encode_label_maps,
)
from ropim_mm.datasets.regions import felzenszwalb_maps
from ropim_mm.datasets.transforms.loading import decode_image
from ropim_mm.errors import InputError

SETTINGS = FHSettings((50, 200), (20, 60), 0.8)
FORK = multiprocessing.get_context('fork')


def picture(seed: int, height: int = 30, width: int = 40) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    noise = rng.integers(-20, 20, (height, width, 3))
    large = np.asarray(Image.fromarray(small).resize((width, height)))
    return Image.fromarray((large + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def images(tmp_path) -> Path:
    """12 images in 3 folders, of several formats and sizes."""
    root = tmp_path / 'images'
    for i in range(12):
        path = (
            root / f'class{i % 3}' / f'{i}{(".png", ".JPEG", ".bmp")[i % 3]}'
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i, 30 + i, 40).save(path)
    return root


def names(images: Path) -> list[str]:
    return sorted(
        p.relative_to(images).as_posix()
        for p in images.rglob('*')
        if p.is_file()
    )


def check(images: Path, out: Path, settings: FHSettings = SETTINGS) -> None:
    """All maps are there and right, and nothing else is."""
    expected = {fh_masks.SETTINGS_FILE}
    for name in names(images):
        image = decode_image((images / name).read_bytes())[..., ::-1]
        maps = felzenszwalb_maps(
            np.ascontiguousarray(image),
            settings.scales,
            settings.min_sizes,
            settings.sigma,
        )
        target = name.rsplit('.', 1)[0] + '.png'
        found = decode_label_maps((out / target).read_bytes())
        np.testing.assert_array_equal(found.maps, maps)
        assert found.settings == dict(
            scales=list(settings.scales),
            min_sizes=list(settings.min_sizes),
            sigma=settings.sigma,
        )
        expected.add(target)
    assert set(names(out)) == expected
    assert not list(out.glob('.*'))


@pytest.mark.parametrize('workers', [0, 2])
def test_every_image_gets_its_maps(images, tmp_path, workers):
    report = create_maps(images, tmp_path / 'out', SETTINGS, workers)
    check(images, tmp_path / 'out')
    assert (report.total, report.done, report.present) == (12, 12, 0)
    sizes = [p.stat().st_size for p in (tmp_path / 'out').rglob('*.png')]
    assert report.written == sum(sizes)
    # Two maps an image, of 30 to 41 rows.
    assert report.raw == 2 * 40 * sum(range(30, 42))
    again = create_maps(images, tmp_path / 'out', SETTINGS, workers)
    assert (again.total, again.done, again.present) == (12, 0, 12)


def test_what_is_there_is_not_made_again(images, tmp_path):
    out = tmp_path / 'out'
    create_maps(images, out, SETTINGS)
    kept = {p: p.stat().st_mtime_ns for p in sorted(out.rglob('*.png'))}
    gone = list(kept)[4]
    gone.unlink()
    report = create_maps(images, out)  # the settings are known
    assert (report.done, report.present) == (1, 11)
    check(images, out)
    for path, changed in kept.items():
        assert (path.stat().st_mtime_ns == changed) is (path != gone)


def test_shards_are_disjoint_and_complete(images, tmp_path):
    out = tmp_path / 'out'
    seen = set()
    for index in range(5):
        report = create_maps(images, out, SETTINGS, shard=(index, 5))
        assert report.present == 0  # nothing that another one made
        now = {p for p in out.rglob('*.png')}
        assert len(now - seen) == report.done == report.total
        assert report.total in (2, 3)
        seen = now
    check(images, out)


def run(images: Path, out: Path, workers: int = 2, shard=(0, 1)):
    """A run in a process of its own."""
    process = FORK.Process(
        target=create_maps, args=(images, out, SETTINGS, workers, shard)
    )
    process.start()
    return process


def test_shards_may_run_at_the_same_time(images, tmp_path):
    out = tmp_path / 'out'
    processes = [run(images, out, 1, (index, 3)) for index in range(3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    check(images, out)


def children(pid: int) -> list[str]:
    """Processes that a process has started and not waited for."""
    return Path(f'/proc/{pid}/task/{pid}/children').read_text().split()


def gone(pid: str) -> bool:
    try:
        state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state.split()[0] in 'ZX'


@pytest.mark.parametrize('seed', [0, 1])
def test_killed_at_any_moment(tmp_path, seed):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    for i in range(16):
        picture(i, 120, 100).save(images / f'{i}.png')
    moments = random.Random(seed)
    count = 0
    for least in (0, 3, 6, 9):
        process = run(images, out)
        while len(list(out.glob('*.png'))) < least:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.08))
        workers = children(process.pid)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        # Nobody goes on working for a run that is gone.
        end = time.monotonic() + 5
        while not all(map(gone, workers)):
            assert time.monotonic() < end
            time.sleep(0.01)
        done = list(out.glob('*.png'))
        assert len(done) >= count  # what was made stays
        count = len(done)
        for path in done:
            found = decode_label_maps(path.read_bytes())
            assert found.maps.shape == (2, 120, 100)
    report = create_maps(images, out, SETTINGS, 2)
    assert report.present == count
    check(images, out)


def test_a_worker_that_dies_is_no_riddle(images, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    make = fh_masks.felzenszwalb_maps

    def deadly(image, *args):
        if len(image) == 41:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(image, *args)

    monkeypatch.setattr(fh_masks, 'felzenszwalb_maps', deadly)
    with pytest.raises(InputError, match='a worker process died .*again'):
        create_maps(images, out, SETTINGS, 2)
    assert not list(out.glob('.*'))
    monkeypatch.undo()
    create_maps(images, out, SETTINGS, 2)
    check(images, out)


def test_two_runs_of_one_shard_are_refused(images, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, '_GRACE', 0.1)
    out = tmp_path / 'out'
    with conversion._own_shard(out, (0, 1)) as aside:
        Path(aside, 'of-the-first').touch()
        with pytest.raises(InputError, match='is making shard 0/1 of'):
            create_maps(images, out, SETTINGS)
        assert Path(aside, 'of-the-first').exists()
    create_maps(images, out, SETTINGS)
    check(images, out)


def test_other_settings_are_refused(images, tmp_path):
    out = tmp_path / 'out'
    create_maps(images, out, SETTINGS, shard=(0, 3))
    with pytest.raises(InputError) as error:
        create_maps(images, out, FHSettings((50,), (20,)))
    text = str(error.value)
    assert text.startswith(f'{out}/fh_masks.json: the maps there are made')
    assert 'scales=(50, 200), min_sizes=(20, 60), sigma=0.8' in text
    assert 'scales=(50,), min_sizes=(20,), sigma=0.8' in text
    (out / 'fh_masks.json').write_text('{"scales": 5}')
    with pytest.raises(InputError, match='does not hold the settings'):
        create_maps(images, out)
    with pytest.raises(InputError, match='Put it back as it was'):
        create_maps(images, out)


def test_unreadable_images_by_policy(images, tmp_path):
    out = tmp_path / 'out'
    cut = images / 'class1/1.JPEG'
    cut.write_bytes(cut.read_bytes()[:-200])
    (images / 'class0/empty.jpg').touch()
    with pytest.raises(
        UnreadableSourceError, match=r'class[01]/(1\.JPEG|empty\.jpg) of .*: '
    ):
        create_maps(images, out, SETTINGS, 2)
    assert not list(out.glob('.*'))
    report = create_maps(images, out, SETTINGS, 2, on_error='skip')
    reasons = dict(report.unreadable)
    assert set(reasons) == {'class1/1.JPEG', 'class0/empty.jpg'}
    assert 'truncated' in reasons['class1/1.JPEG']
    assert 'empty (0 bytes)' in reasons['class0/empty.jpg']
    assert report.done + report.present == 11
    with pytest.raises(InputError, match="on_error is 'ignore'"):
        create_maps(images, out, on_error='ignore')


def test_verification_finds_each_kind_of_damage(images, tmp_path):
    out = tmp_path / 'out'
    create_maps(images, out, SETTINGS)
    report = verify_maps(images, out, workers=2)
    assert (report.total, report.done) == (12, 12)
    assert not report.missing + report.broken + report.unreadable

    def write(name, maps, settings=SETTINGS):
        data = encode_label_maps(LabelMaps.from_maps(maps, settings.to_json()))
        (out / name).write_bytes(data)

    whole = (out / 'class0/3.png').read_bytes()
    (out / 'class0/0.png').unlink()
    (out / 'class0/3.png').write_bytes(whole[:-20])
    (out / 'class0/6.png').write_bytes(whole[:90] + b'x' + whole[91:])
    (out / 'class0/9.png').write_bytes(b'')
    write('class1/1.png', np.zeros((2, 40, 31), np.uint8))
    write('class1/4.png', np.zeros((1, 34, 40), np.uint8))
    write(
        'class1/7.png',
        np.zeros((2, 37, 40), np.uint8),
        FHSettings((50, 100), (20, 60)),
    )
    (images / 'class2/2.bmp').write_bytes(b'no image')
    before = sorted(p.stat().st_mtime_ns for p in out.rglob('*'))

    stream = io.StringIO()
    report = verify_maps(images, out, progress=stream)
    # The 11 that are there; then the images of what is missing or broken.
    assert ' 11/11 ' in stream.getvalue()
    assert ' 7/7 ' in stream.getvalue().splitlines()[-1]
    assert report.missing == ['class0/0.png']
    assert dict(report.unreadable).keys() == {'class2/2.bmp'}
    assert report.done == 12 - 8
    broken = dict(report.broken)
    assert len(broken) == 6
    assert 'truncated' in broken['class0/3.png']
    assert 'damaged' in broken['class0/6.png']
    assert 'empty' in broken['class0/9.png']
    assert (
        '(40, 31) (height, width) and its image (31, 40)'
        in (broken['class1/1.JPEG'])
    )
    assert 'it has 1 maps; expected 2' in broken['class1/4.JPEG']
    assert "made with {'scales': [50, 100]" in broken['class1/7.JPEG']
    # Looking changes nothing.
    assert sorted(p.stat().st_mtime_ns for p in out.rglob('*')) == before

    picture(2, 32, 40).save(images / 'class2/2.bmp')
    stream = io.StringIO()
    report = create_maps(images, out, repair=True, progress=stream)
    assert (report.done, report.present) == (7, 5)
    assert ' 11/11 ' in stream.getvalue()  # of the check
    check(images, out)


def test_images_left_out_are_not_missing(images, tmp_path):
    out = tmp_path / 'out'
    for name in ('class0/0.png', 'class0/3.png'):
        (images / name).write_bytes(b'no image')
    create_maps(images, out, SETTINGS, on_error='skip')
    (out / 'class1/1.png').unlink()
    (out / 'class0/3.png').write_bytes(b'')
    report = verify_maps(images, out)
    assert report.missing == ['class1/1.JPEG']
    assert [name for name, _ in report.broken] == ['class0/3.png']
    assert sorted(dict(report.unreadable)) == ['class0/0.png', 'class0/3.png']
    assert 'not an image' in dict(report.unreadable)['class0/0.png']
    assert report.done == 9


def test_turned_photos_have_upright_maps(tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        picture(turn, 20, 50).save(images / f'{turn}.jpg', exif=exif)
    create_maps(images, out, SETTINGS)
    check(images, out)
    shapes = {
        turn: decode_label_maps((out / f'{turn}.png').read_bytes()).shape
        for turn in range(1, 9)
    }
    assert shapes == {t: (20, 50) if t < 5 else (50, 20) for t in range(1, 9)}
    assert verify_maps(images, out).done == 8


def test_more_segments_than_a_byte_holds(tmp_path):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    Image.fromarray(noise.astype(np.uint8)).save(images / 'noise.png')
    settings = FHSettings((1, 5), (2, 2), 0.1)
    create_maps(images, out, settings)
    check(images, out, settings)
    maps = decode_label_maps((out / 'noise.png').read_bytes()).maps
    assert maps.dtype == np.uint16
    assert maps.max() > 256
    assert verify_maps(images, out).done == 1


def test_an_archive_of_images(images, tmp_path):
    archive, out = tmp_path / 'images.zip', tmp_path / 'out'
    with zipfile.ZipFile(archive, 'w') as file:
        for name in names(images):
            file.write(images / name, name)
        file.writestr('__MACOSX/class0/0.png', b'resource fork')
        file.writestr('readme.txt', b'no image')
    assert create_maps(archive, out, SETTINGS, 2).done == 12
    check(images, out)
    assert verify_maps(archive, out, workers=2).done == 12


@pytest.mark.parametrize('name', ['a/../../x.jpg', '/tmp/x.jpg', '../x.jpg'])
def test_members_that_lead_out_are_refused(images, tmp_path, name):
    archive, out = tmp_path / 'images.zip', tmp_path / 'deep' / 'out'
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr(name, (images / names(images)[0]).read_bytes())
    with pytest.raises(InputError, match=f'the member {name} of .* leads out'):
        create_maps(archive, out, SETTINGS)
    assert not out.parent.exists()


@pytest.mark.parametrize('repair', [False, True])
def test_a_folder_of_something_else_is_left_alone(images, tmp_path, repair):
    out = tmp_path / 'out'
    own = out / 'class0' / '0.png'
    own.parent.mkdir(parents=True)
    own.write_bytes(b'precious')
    with pytest.raises(
        InputError, match=r"out holds 1 entries, such as \['class0'\], and no"
    ):
        create_maps(images, out, SETTINGS, repair=repair)
    with pytest.raises(InputError, match='Choose an empty one'):
        verify_maps(images, out, SETTINGS)
    assert own.read_bytes() == b'precious'
    assert os.listdir(out) == ['class0']


def test_what_a_killed_run_left_is_no_obstacle(images, tmp_path):
    out = tmp_path / 'out'
    aside = out / '.unfinished-0-of-1'
    aside.mkdir(parents=True)
    (aside / 'half').touch()
    assert create_maps(images, out, SETTINGS).done == 12
    check(images, out)


def test_progress_with_rate_and_time_left(images, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, '_LINES', 0.0)
    stream = io.StringIO()
    create_maps(images, tmp_path / 'out', SETTINGS, progress=stream)
    lines = stream.getvalue().splitlines()
    assert '0/12' in lines[0] and '12/12' in lines[-1]
    assert any('7/12' in line and 'image/s' in line for line in lines)
    assert all('\r' not in line for line in lines)


def test_bad_arguments_are_named(images, tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(InputError, match=r'no folder or zip archive .*none'):
        create_maps(tmp_path / 'none', out)
    (tmp_path / 'text').write_text('hello')
    with pytest.raises(InputError, match='cannot be read as a zip'):
        create_maps(tmp_path / 'text', out)
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(InputError, match=r'no images in .*nothing'):
        create_maps(tmp_path / 'nothing', out)
    for bad in ((3, 3), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match='expected I/N'):
            create_maps(images, out, shard=bad)
    for bad in (images, images / 'fh'):
        with pytest.raises(InputError, match='would be taken for images'):
            create_maps(images, bad)
    with pytest.raises(InputError, match=r'images lies in .*a folder beside'):
        create_maps(images, tmp_path)
    with pytest.raises(InputError, match='text is a file; expected a folder'):
        create_maps(images, tmp_path / 'text')
    assert not out.exists()
    picture(0).save(images / 'class0/0.jpg')
    with pytest.raises(
        InputError, match=r'class0/0\.jpg and class0/0\.png .* the same file'
    ):
        create_maps(images, out)


def test_a_full_disk_is_named(images, tmp_path, monkeypatch):
    def write(*_, **__):
        raise OSError(28, 'No space left on device')

    out = tmp_path / 'out'
    create_maps(images, out, SETTINGS, shard=(0, 12))
    monkeypatch.setattr(conversion, '_write_durably', write)
    with pytest.raises(InputError, match=r'cannot write .*\.png.*No space'):
        create_maps(images, out, SETTINGS, 2)


def test_a_folder_that_cannot_be_made_is_named(images, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    out = tmp_path / 'file' / 'out'
    with pytest.raises(InputError, match=f'cannot write {out}: .*directory'):
        create_maps(images, out, SETTINGS)

    def write(*_, **__):
        raise OSError(28, 'No space left on device')

    out = tmp_path / 'out'
    monkeypatch.setattr(conversion, '_write_durably', write)
    with pytest.raises(InputError, match=f'cannot write {out}: .*No space'):
        create_maps(images, out, SETTINGS)


def test_settings_are_kept_as_they_are(tmp_path):
    settings = FHSettings((12.5, 100), (5, 7), 0.3)
    aside, out = tmp_path / 'aside', tmp_path / 'out'
    out.mkdir()
    aside.mkdir()
    keep = conversion._keep_settings
    keep(out, fh_masks._MapConverter(settings), str(aside))
    assert FHSettings.of_folder(out) == settings
    assert json.loads((out / 'fh_masks.json').read_text()) == dict(
        scales=[12.5, 100], min_sizes=[5, 7], sigma=0.3
    )
    assert FHSettings.of_folder(tmp_path / 'none') is None
    # Two runs that begin at the same moment with different ones.
    with pytest.raises(InputError, match='another run has just begun'):
        keep(out, fh_masks._MapConverter(SETTINGS), str(aside))
