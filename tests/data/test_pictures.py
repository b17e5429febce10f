"Pictures of any kind become the pixels that numpy and Pillow say, whatever way they are given."
import io
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageOps

from miniai import DataLoaders, checkpoint
from miniai.data import pictures
from miniai.data.memory import MemoryLoader
from miniai.data.picture_files import PictureError
from miniai.data.pictures import PictureRecipe, recipe_of
from miniai.data.recipe import Recipe
from picture_folders import as_kept, drawn, in_classes, write, write_folder

COLOR, GRAY = PictureRecipe((6, 8)), PictureRecipe((6, 8), 1)


def one(recipe, x):
    "The row for a single picture."
    (kept,), single = recipe.read(x)
    assert single
    assert kept.dtype == torch.uint8
    return kept[0].numpy()


def luma(a): return (a.astype(float) @ [299, 587, 114])/1000  # ITU-R 601-2, as Pillow's documentation says


def assert_close(found, expected): np.testing.assert_allclose(found.astype(float), expected, atol=1)


@given(hnp.arrays(np.uint8, (6, 8, 3)))
def test_a_picture_of_the_recipe_s_size_stays_as_it_is_in_any_form(a):
    buffer = io.BytesIO()
    Image.fromarray(a).save(buffer, 'PNG')
    chw = np.ascontiguousarray(a.transpose(2, 0, 1))
    floats = torch.from_numpy(chw)/255
    for x in (a, chw, torch.from_numpy(a), floats, floats.double().numpy(), Image.fromarray(a), buffer):
        buffer.seek(0)
        np.testing.assert_array_equal(one(COLOR, x), chw)
    assert_close(one(GRAY, a), luma(a))


@given(hnp.arrays(np.uint8, (6, 8)))
def test_a_gray_picture_stays_gray_or_has_three_equal_channels(a):
    for x in (a, a[..., None], torch.from_numpy(a)/255, Image.fromarray(a)):
        np.testing.assert_array_equal(one(GRAY, x), a)
        np.testing.assert_array_equal(one(COLOR, x), np.stack([a]*3))


def test_many_pictures_in_any_form_are_the_rows_of_each(tmp_path):
    a = drawn(5, 6, 8, 3)
    paths = [write(tmp_path/f'{i}.png', x) for i, x in enumerate(a)]
    for x in (a, a.transpose(0, 3, 1, 2), torch.from_numpy(a), list(a), tuple(map(Image.fromarray, a)), paths,
              list(map(str, paths)), tmp_path, str(tmp_path)):
        (kept,), single = COLOR.read(x)
        assert not single
        np.testing.assert_array_equal(kept, a.transpose(0, 3, 1, 2))
    for x in (a[..., 0], list(a[..., 0]), a[..., :1]): np.testing.assert_array_equal(GRAY.read(x)[0][0], a[..., 0])
    for n in (1, 3): assert GRAY.read(a[:n, ..., 0])[0][0].shape == (n, 6, 8)


@pytest.mark.parametrize(('shape', 'rows', 'columns'), [
    ((6, 20), slice(None), slice(6, 14)), ((16, 8), slice(5, 11), slice(None))])
def test_a_crop_is_the_middle_of_the_picture(shape, rows, columns):
    a = drawn(*shape, 3)
    np.testing.assert_array_equal(one(COLOR, a), a[rows, columns].transpose(2, 0, 1))


@given(hnp.arrays(np.uint8, (6, 8, 3)), st.integers(1, 3), st.integers(1, 3))
def test_squashing_uses_the_whole_picture(a, k, m):
    recipe = PictureRecipe((6, 8), fit='squash')
    smooth = np.full_like(a, a[0, 0])
    np.testing.assert_array_equal(one(recipe, np.repeat(np.repeat(smooth, k, 0), m, 1)), as_kept(smooth))
    wide = np.concatenate([np.zeros((6, 40, 3), np.uint8), np.full((6, 40, 3), 255, np.uint8)], 1)
    assert one(recipe, wide)[:, :, 0].max() == 0
    assert one(recipe, wide)[:, :, -1].min() == 255


@pytest.mark.parametrize('fit', ['crop', 'squash'])
@given(shape=st.tuples(st.integers(1, 30), st.integers(1, 30)), size=st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_any_picture_gets_the_size_by_pillow_s_bilinear_filter(fit, shape, size):
    im, wh = Image.fromarray(drawn(*shape, 3)), size[::-1]
    how = Image.Resampling.BILINEAR
    expected = ImageOps.fit(im, wh, how) if fit == 'crop' else im.resize(wh, how)
    if im.size == wh: expected = im
    np.testing.assert_array_equal(one(PictureRecipe(size, fit=fit), im), as_kept(np.asarray(expected)))


def test_one_number_is_the_size_of_a_square():
    assert one(PictureRecipe(5), drawn(9, 7, 3)).shape == (3, 5, 5)


# What the orientations of EXIF say to do with the stored pixels.
UPRIGHT = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2),
           6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_pictures_are_turned_upright_whether_given_as_path_or_by_pillow(tmp_path, orientation):
    shape = (6, 8) if orientation < 5 else (8, 6)
    a, exif = drawn(*shape, 3), Image.Exif()
    exif[0x0112] = orientation
    p, expected = write(tmp_path/'1.png', a, exif=exif), UPRIGHT[orientation](a)
    np.testing.assert_array_equal(one(COLOR, p), as_kept(expected))
    with Image.open(p) as im: np.testing.assert_array_equal(one(COLOR, im), as_kept(expected))


@pytest.mark.parametrize('alpha', ['RGBA', 'LA', 'palette', 'key', 'gray key', 'palette alpha'])
def test_transparent_parts_are_white(tmp_path, alpha):
    a, clear = drawn(6, 8, 3), np.zeros((6, 8), np.uint8)
    clear[2:4, 3:6] = 255
    im = Image.fromarray(a).convert('L' if alpha in ('LA', 'gray key') else 'RGB')
    if alpha in ('RGBA', 'LA'): im.putalpha(Image.fromarray(255 - clear))
    elif alpha == 'key': im.info['transparency'] = tuple(int(v) for v in a[2, 3])
    elif alpha == 'gray key': im.info['transparency'] = int(np.asarray(im)[2, 3])
    elif alpha == 'palette alpha': im = im.convert('RGBA').quantize(16)
    else: im = im.quantize(8)
    if alpha == 'palette': im.info['transparency'] = int(np.asarray(im)[2, 3])
    rgba = np.asarray(im.convert('RGBA')).astype(float)
    share = rgba[..., 3:]/255
    expected = rgba[..., :3]*share + 255*(1 - share)
    im.save(tmp_path/'1.png', **({'transparency': im.info['transparency']} if 'transparency' in im.info else {}))
    for x in (im, tmp_path/'1.png'):
        assert_close(one(COLOR, x).transpose(1, 2, 0), expected)
        np.testing.assert_allclose(one(GRAY, x).astype(float), luma(expected), atol=2)
    if alpha != 'palette alpha': assert (one(COLOR, im)[:, 2, 3] == 255).all()


@given(hnp.arrays(np.uint8, (6, 8, 4)))
def test_an_array_of_four_channels_has_alpha(a):
    share = a[..., 3:]/255
    assert_close(one(COLOR, a).transpose(1, 2, 0), a[..., :3]*share + 255*(1 - share))


@pytest.mark.parametrize('name', ['1.png', '1.tif', 'big.tif'])
def test_sixteen_bits_are_rounded_to_eight(tmp_path, name):
    a = np.random.default_rng(0).integers(0, 2**16, (6, 8)).astype(np.uint16)
    a[0, :4] = 0, 65535, 128, 129
    im = Image.fromarray(a) if name != 'big.tif' else Image.frombytes('I;16B', (8, 6), a.astype('>u2').tobytes())
    im.save(tmp_path/name)
    expected = np.rint(a/257)
    np.testing.assert_array_equal(one(GRAY, tmp_path/name), expected)
    np.testing.assert_array_equal(one(COLOR, tmp_path/name), np.stack([expected]*3))


def test_black_and_white_pictures_palettes_and_cmyk_are_their_colors(tmp_path):
    a = drawn(6, 8, 3)
    bits = Image.fromarray(a).convert('1')
    bits.save(tmp_path/'1.png')
    np.testing.assert_array_equal(one(GRAY, tmp_path/'1.png'), np.asarray(bits)*255)
    palette = Image.fromarray(a).quantize(16)
    palette.save(tmp_path/'2.gif')
    colors = np.array(palette.getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(one(COLOR, tmp_path/'2.gif'), as_kept(colors[np.asarray(palette)]))
    cmyk = drawn(6, 8, 4).astype(float)
    im = Image.frombytes('CMYK', (8, 6), cmyk.astype(np.uint8).tobytes())
    im.save(tmp_path/'3.tif')
    expected = (255 - cmyk[..., :3])*(255 - cmyk[..., 3:])/255
    assert_close(one(COLOR, tmp_path/'3.tif').transpose(1, 2, 0), expected)


@pytest.mark.parametrize('ext', ['gif', 'png', 'webp', 'tif'])
def test_an_animation_is_its_first_picture(tmp_path, ext):
    first, *others = (Image.fromarray(np.full((6, 8, 3), v, np.uint8)) for v in (200, 20, 90))
    options = {'lossless': True} if ext == 'webp' else {}
    first.save(tmp_path/f'1.{ext}', save_all=True, append_images=others, **options)
    np.testing.assert_array_equal(one(COLOR, tmp_path/f'1.{ext}'), np.full((3, 6, 8), 200))


@pytest.mark.parametrize(('shape', 'orientation', 'size', 'detail'), [
    ((400, 500), 1, (20, 20), 80), ((400, 1600), 6, (160, 40), 40), ((500, 2000), 6, (50, 200), 5)])
def test_a_large_jpeg_has_the_detail_of_one_that_was_decoded_in_full(tmp_path, shape, orientation, size, detail):
    small, exif = Image.fromarray(drawn(shape[0]//detail, shape[1]//detail, 3)), Image.Exif()
    a = np.array(small.resize(shape[::-1]))
    exif[0x0112] = orientation
    p = write(tmp_path/'1.jpg', a, exif=exif, quality=95)
    full = ImageOps.fit(ImageOps.exif_transpose(Image.open(p)), size[::-1], Image.Resampling.BILINEAR)
    found = one(PictureRecipe(size), p).transpose(1, 2, 0).astype(float)
    assert np.abs(found - np.asarray(full)).mean() < 6  # its own averaging is not Pillow's


def test_rows_lie_in_memory_as_those_of_a_folder_so_that_a_model_gives_the_same_bits(tmp_path):
    files = [write(tmp_path/f'{i}.png', drawn(6, 8, 3)) for i in range(3)]
    (kept,), _ = COLOR.read(files)
    row, = COLOR.rows(files).gathered(torch.arange(3), 3)
    assert kept.stride() == row.stride()
    assert torch.equal(kept, row)


FORMATS = {'JPEG': {}, 'PNG': {}, 'GIF': {}, 'BMP': {}, 'TIFF': {}, 'WEBP': dict(lossless=True), 'PPM': {}, 'TGA': {}}


@pytest.mark.parametrize('format', FORMATS)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_files_are_read_or_named_and_nothing_else(tmp_path_factory, format, data):
    buffer = io.BytesIO()
    Image.fromarray(drawn(20, 20, 3)).save(buffer, format, **FORMATS[format])
    content = bytearray(buffer.getvalue()[:data.draw(st.integers(0, len(buffer.getvalue())))])
    for at, new in data.draw(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=5)):
        if at < len(content): content[at] = new
    p = tmp_path_factory.getbasetemp()/f'damaged {format}.png'
    p.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, about damaged metadata
        try: found = one(COLOR, p).shape, str(p)
        except PictureError as e: found = (3, 6, 8), str(e)
    assert found[0] == (3, 6, 8)
    assert str(p) in found[1]


def test_pictures_may_come_from_anything_that_has_them_one_after_the_other(tmp_path):
    pd = pytest.importorskip('pandas')
    for i in range(3): Image.fromarray(drawn(6, 8, 3, seed=i)).save(tmp_path/f'{i}.png')
    files = sorted(tmp_path.iterdir())
    (want,), _ = COLOR.read(files)
    for x in (iter(files), sorted(tmp_path.glob('*.png')), (f for f in files), tuple(files),
              dict.fromkeys(files).keys(), map(Image.open, files), pd.Series(files), np.array(files, object),
              np.array([*map(str, files)])):
        (found,), single = COLOR.read(x)
        assert torch.equal(found, want)
        assert not single


@pytest.mark.parametrize(('x', 'said'), [
    ('nowhere.png', 'no picture at nowhere.png'),
    (None, 'type NoneType is not a picture: give a path'), ([[1, 2], [3, 4]], 'type list is not a picture'),
    (b'\x89PNG', 'type bytes is not a picture'), ([], 'there are no pictures'),
    (np.zeros((0, 6, 8, 3), np.uint8), 'no pictures'), (np.zeros((0, 8), np.uint8), r'shape \(0, 8\) has no pixels'),
    (iter([]), 'no pictures'), ({'a': 1}, 'type dict is not a picture'), (3, 'an object of type int is not a picture'),
    (np.zeros((6, 8), int), 'must hold uint8, or floats from 0 to 1.*int64'), (np.full((6, 8), 2.), 'got float64'),
    (np.full((6, 8), np.nan), 'floats from 0 to 1'), (np.zeros(6, np.uint8), r'shape \(6,\) is not a picture'),
    (np.zeros((1, 1, 6, 8, 3), np.uint8), 'shape'), (np.zeros((6, 8, 2), np.uint8), 'is not a picture'),
    (np.zeros((5, 9, 7), np.uint8), r'shape \(5, 9, 7\) is not a picture')])
def test_what_is_no_picture_is_an_error_that_says_what_is_one(x, said):
    with pytest.raises(PictureError, match=said): COLOR.read(x)


@pytest.mark.parametrize(('given', 'said'), [
    (dict(size=0), 'size must be'), (dict(size='224'), "got '224'"), (dict(size=(2, 3, 4)), 'a height and a width'),
    (dict(size=2.5), 'got 2.5'), (dict(size=4, channels=4), 'channels must be 1 for gray or 3 for color, got 4'),
    (dict(size=4, fit='pad'), "fit must be 'crop' or 'squash', got 'pad'")])
def test_a_recipe_that_cannot_be_is_an_error(given, said):
    with pytest.raises(ValueError, match=said): PictureRecipe(**given)


@pytest.mark.parametrize('recipe', [
    PictureRecipe(5), PictureRecipe((4, 5), 1, 'squash', .25, .5, classes=['x', 'y']),
    PictureRecipe((4, 5), 3, mean=[.1, .2, .3], std=[1., .5, .25], classes=['é'], target_mean=2., target_std=3.)])
def test_a_recipe_in_a_checkpoint_gives_the_same_batches(tmp_path, recipe):
    checkpoint.save(tmp_path/'r', recipe.to_dict())
    new, x = Recipe.from_dict(checkpoint.load(tmp_path/'r')), drawn(4, 9, 7, 3)
    assert vars(new) == vars(recipe)
    for a, b in zip(recipe.test(x), new.test(x), strict=True): assert torch.equal(a[0], b[0])


def test_a_recipe_tells_what_a_model_must_take():
    assert PictureRecipe(5, 1, classes=['a', 'b', 'c']).facts == dict(channels=1, outputs=3)
    assert PictureRecipe(5).facts == dict(channels=3, outputs=1)


# Loaders of other pictures

@pytest.fixture
def folder(tmp_path): return tmp_path, write_folder(tmp_path, in_classes(3), (6, 8, 3))


def test_a_test_loader_of_a_folder_has_its_pictures_in_order_scaled_with_their_classes(folder):
    path, pictures = folder
    recipe = PictureRecipe((6, 8), mean=[.1, .2, .3], std=[1., .5, .25], classes=['other', 'b', 'a'])
    (xb, yb), = recipe.test(path)
    expected = (np.stack(list(pictures.values()))/255 - [.1, .2, .3])/[1., .5, .25]
    np.testing.assert_allclose(xb, expected.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert yb.tolist() == [2, 2, 2, 1, 1, 1]
    assert [len(x) for x, _ in recipe.test(path, bs=4)] == [4, 2]


def test_a_test_loader_of_loose_pictures_or_without_classes_has_no_targets(folder):
    path, pictures = folder
    expected = np.stack([as_kept(pictures[f'b/{i}.png']) for i in range(3)])
    (xb,), = PictureRecipe((6, 8), classes=['a', 'b']).test(path/'b')
    np.testing.assert_array_equal((xb*255).round(), expected)
    assert [len(b) for b in PictureRecipe((6, 8)).test(path)] == [1]


def test_a_test_loader_takes_pictures_with_targets_by_name_or_number(folder):
    path, _ = folder
    recipe = PictureRecipe((6, 8), classes=['a', 'b'])
    files = [path/'b/0.png', path/'a/1.png']
    for y in (['b', 'a'], np.array(['b', 'a']), [1, 0], np.array([1, 0]), torch.tensor([1, 0])):
        (_, yb), = recipe.test(files, y)
        assert yb.tolist() == [1, 0]
        assert yb.dtype == torch.int64


def test_a_test_folder_with_an_unknown_class_is_an_error_that_names_it(folder):
    with pytest.raises(ValueError, match='unknown class b: the model knows a, c'):
        PictureRecipe(4, classes=['a', 'c']).test(folder[0])


# The recipe of arrays

@pytest.mark.parametrize(('shape', 'channels'), [
    ((9, 6, 8), 1), ((9, 1, 6, 8), 1), ((9, 6, 8, 1), 1), ((9, 3, 6, 8), 3), ((9, 6, 8, 3), 3)])
@pytest.mark.parametrize('normalize', [False, True])
def test_pixels_in_arrays_are_pictures_with_the_batches_of_their_loader(shape, channels, normalize):
    x = drawn(*shape)
    dls = DataLoaders.from_arrays(x, np.arange(9), valid=[3, 4], bs=9, normalize=normalize)
    recipe = recipe_of(dls.train, ['a', 'b'])
    assert isinstance(recipe, PictureRecipe)
    assert (recipe.size, recipe.channels, recipe.classes) == ((6, 8), channels, ['a', 'b'])
    (xb, yb), (xt, yt) = *dls.valid, *recipe.test(x[3:5], np.arange(3, 5))
    assert torch.equal(xb, xt)
    assert torch.equal(yb, yt)


@pytest.mark.parametrize(('x', 'given'), [
    (torch.randn(9, 5), {}), (torch.randn(9, 3, 6, 8), {}), (drawn(9, 5), {}), (drawn(9, 4, 6, 8), {}),
    (drawn(9, 6, 8, 4), dict(channels_last=True)), (torch.arange(9), {}), (drawn(9, 6, 8), dict(to_float=False))])
def test_other_arrays_are_no_pictures(x, given):
    recipe = recipe_of(MemoryLoader(x, bs=4, **given))
    assert type(recipe) is Recipe
    (xb,), (xt,) = next(iter(MemoryLoader(x, bs=9, **given))), next(iter(recipe.test(x)))
    if given != dict(to_float=False): assert torch.equal(xb, xt)


def test_show_draws_training_pictures_with_their_classes_and_the_pass_stays_where_it_is(monkeypatch):
    drawn, x = {}, torch.arange(20, dtype=torch.uint8)[:, None, None].expand(20, 5, 4)
    monkeypatch.setattr(pictures, 'show_images', lambda ims, titles, **kw: drawn.update(ims=ims, titles=titles, **kw))
    dls = DataLoaders.from_arrays(x, torch.arange(20) % 2, valid=range(10, 20), normalize=True)
    dls.classes = ['even', 'odd']
    dls.show(4, ncols=2)
    values = [int(im[0, 0]) for im in drawn['ims']]
    assert len(set(values)) == 4
    assert max(values) < 10
    assert drawn['titles'] == [['even', 'odd'][v % 2] for v in values]
    assert (drawn['ncols'], dls.train.epoch) == (2, 0)
    with pytest.raises(ValueError, match='show is for pictures and tables'):
        DataLoaders.from_arrays(torch.zeros(20, 3), torch.zeros(20)).show()


def test_many_files_are_not_all_in_memory_and_a_missing_one_is_named(tmp_path):
    a = np.arange(70*16, dtype=np.uint8).reshape(70, 4, 4)
    paths = [write(tmp_path/f'{i}.png', x) for i, x in enumerate(a)]
    recipe = PictureRecipe(4, 1)
    [rows], single = recipe.read(paths)
    assert not single
    assert not rows.keep
    assert torch.cat([batch[0] for batch in recipe.loader([rows], 32)]).equal(torch.from_numpy(a/255).float()[:, None])
    paths[66].unlink()
    with pytest.raises(PictureError, match=r'66\.png'): list(recipe.loader(recipe.read(paths)[0], 32))
