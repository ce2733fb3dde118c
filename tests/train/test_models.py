"""Contract: four methods from one class, a teacher that never moves, and weights that fit or are refused by name."""

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from snl_runtime.errors import ConfigError
from snl_train.config import LossConfig, ModelConfig
from snl_train.losses import structural_loss
from snl_train.models import Cram, ForwardStudent, ReverseStudent, Teacher, TeacherStudent, build_model, build_teacher, fetch_teacher
from snl_train.models.resnet import ResNetPyramid
from snl_train.models.weights import load_state

SHARED_WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "resnet18_imagenet_stem-layer3.safetensors"
METHODS = ["rd", "fd", "snl-rd", "snl-fd"]


def small_model(method: str = "snl-rd", **options: Any) -> TeacherStudent:
    torch.manual_seed(0)
    return build_model(ModelConfig(method=method, teacher="resnet18", teacher_weights="random", **options))  # type: ignore[arg-type]


def crams_of(model: TeacherStudent) -> list[Cram]:
    return [part for part in model.student.modules() if isinstance(part, Cram)]


def pictures(count: int = 2, height: int = 64, width: int = 96) -> Tensor:
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def torchvision_layers(network: nn.Module, images: Tensor) -> list[Tensor]:
    """Layer1 to layer3 of torchvision's own network."""
    kept: list[Tensor] = []
    for name in ("layer1", "layer2", "layer3"):
        getattr(network, name).register_forward_hook(lambda _module, _inputs, output: kept.append(output.detach()))
    with torch.no_grad():
        network(images)
    return kept


def moved_norms(network: nn.Module) -> nn.Module:
    """Give batch norms other statistics than the start's, so that a forgotten one shows."""
    torch.manual_seed(3)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for name, low, high in (("running_mean", -0.2, 0.2), ("running_var", 0.5, 2.0), ("weight", 0.5, 1.5)):
                nn.init.uniform_(getattr(part, name), low, high)
    return network.eval()


@pytest.mark.parametrize("architecture", ["resnet18", "resnet34", "wide_resnet50_2"])
def test_teacher_gives_torchvisions_features(architecture: str, tmp_path: Path) -> None:
    reference = moved_norms(getattr(torchvision.models, architecture)(weights=None))
    torch.save(reference.state_dict(), tmp_path / "whole.pth")
    teacher = build_teacher(architecture, str(tmp_path / "whole.pth"))
    images = torch.randn(1, 3, 64, 64)
    for got, expected in zip(teacher(images), torchvision_layers(reference, images), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.shared
@pytest.mark.skipif(not SHARED_WEIGHTS.is_file(), reason="needs ../shared/weights")
def test_real_weights_without_layer4_and_fc_give_torchvisions_features() -> None:
    reference = torchvision.models.resnet18(weights=None)
    reference.load_state_dict(safetensors.torch.load_file(SHARED_WEIGHTS), strict=False)
    images = torch.randn(1, 3, 96, 64)
    teacher = build_teacher("resnet18", str(SHARED_WEIGHTS))
    for got, expected in zip(teacher(images), torchvision_layers(reference.eval(), images), strict=True):
        assert torch.equal(got, expected)


def part_of_resnet18() -> dict[str, Tensor]:
    state = moved_norms(torchvision.models.resnet18(weights=None)).state_dict()
    return {key: value for key, value in state.items() if not key.startswith(("layer4", "fc")) and not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_may_lack_layer4_fc_and_counters(tmp_path: Path, suffix: str) -> None:
    state, path = part_of_resnet18(), tmp_path / f"part{suffix}"
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    loaded = build_teacher("resnet18", str(path)).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"bn1.weight": None}, "key 'bn1.weight' is missing"),
        ({"layer2.9.conv1.weight": torch.zeros(1)}, "key 'layer2.9.conv1.weight' is not part of it"),
        ({"conv1.weight": torch.zeros(64, 3, 3, 3)}, r"key 'conv1.weight' has shape \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)"),
        ({"bn1.bias": torch.full((64,), float("nan"))}, "key 'bn1.bias' has values that are not finite"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_file_and_key(tmp_path: Path, change: dict[str, Tensor | None], part: str) -> None:
    state = {key: value for key, value in (part_of_resnet18() | change).items() if value is not None}
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file(state, path)
    with pytest.raises(ConfigError, match=part) as caught:
        build_teacher("resnet18", str(path))
    assert str(path) in str(caught.value)


def test_another_architectures_weights_are_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file(part_of_resnet18(), tmp_path / "r18.safetensors")
    with pytest.raises(ConfigError, match=r"r18\.safetensors do not fit resnet50"):
        build_teacher("resnet50", str(tmp_path / "r18.safetensors"))


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 half an archive", b"\x80\x02ccollections\nOrderedDict\nq\x00."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"broken\{suffix}"):
        build_teacher("resnet18", str(path))


def test_a_truncated_file_is_refused_with_its_name(tmp_path: Path) -> None:
    torch.save(part_of_resnet18(), tmp_path / "whole.pth")
    safetensors.torch.save_file(part_of_resnet18(), tmp_path / "whole.safetensors")
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes((tmp_path / f"whole{suffix}").read_bytes()[:100_000])
        with pytest.raises(ConfigError, match=rf"cut\{suffix}"):
            build_teacher("resnet18", str(path))


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"conv1.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ConfigError, match=r"evil\.pth"):
        build_teacher("resnet18", str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_a_whole_model_or_a_list_is_no_state_dict(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="state dict"):
        build_teacher("resnet18", str(tmp_path / "list.pth"))


def test_a_missing_file_an_unknown_architecture_and_random_without_seed_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no file nowhere\.pth"):
        build_teacher("resnet18", "nowhere.pth")
    with pytest.raises(ConfigError, match="teacher must be one of resnet18"):
        build_teacher("resnet101", "random", seed=0)
    with pytest.raises(ConfigError, match="need a seed"):
        build_teacher("resnet18", "random")


def no_network(*_args: Any, **_kwargs: Any) -> None:
    raise urllib.error.URLError("Name or service not known")


def test_without_network_imagenet_names_both_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(ConfigError) as caught:
        build_teacher("resnet18", "imagenet")
    for part in ("snl-train --fetch-teacher resnet18 --out resnet18.safetensors", "--teacher-weights", "Name or service not known"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot download"):
        fetch_teacher("resnet18", tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*.safetensors"))


def test_fetched_weights_are_the_part_a_teacher_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = moved_norms(torchvision.models.resnet18(weights=None)).state_dict()
    monkeypatch.setattr("snl_train.models.weights.imagenet_state", lambda _architecture: whole)
    fetch_teacher("resnet18", tmp_path / "out.safetensors")
    stored = safetensors.torch.load_file(tmp_path / "out.safetensors")
    assert not [key for key in stored if key.startswith(("layer4", "fc"))]
    teacher = build_teacher("resnet18", str(tmp_path / "out.safetensors"))
    assert all(torch.equal(value, whole[key]) for key, value in teacher.state_dict().items())
    with pytest.raises(ConfigError, match=r"must name a \.safetensors file"):
        fetch_teacher("resnet18", tmp_path / "out.pth")


def test_a_random_teacher_follows_its_seed_and_leaves_the_global_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (build_teacher("resnet18", "random", seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_random_features_vary_over_the_image_and_over_channels(architecture: str) -> None:
    teacher = build_teacher(architecture, "random", seed=0)
    coarse = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    for features in teacher(nn.functional.interpolate(coarse, size=(96, 96), mode="bilinear")):
        assert torch.isfinite(features).all()
        assert 0.1 < features.std().item() < 30
        unit = nn.functional.normalize(features.flatten(2), dim=1)
        cosines = unit.mT @ unit
        assert cosines.mean().item() < 0.97, "all positions look alike"
        assert (features.flatten(2).std(2) > 1e-3).float().mean().item() > 0.7, "most channels are constant"


@pytest.mark.parametrize(("method", "architecture"), [*((method, "resnet18") for method in METHODS), ("snl-rd", "resnet50"), ("fd", "resnet50")])
def test_student_has_the_teachers_shapes_also_when_not_square(method: Any, architecture: Any) -> None:
    model = build_model(ModelConfig(method=method, teacher=architecture, teacher_weights="random", centers=3))
    teacher, student = model(model.normalize(pictures()))
    assert [s.shape for s in student] == [t.shape for t in teacher]
    assert [tuple(t.shape[2:]) for t in teacher] == [(16, 24), (8, 12), (4, 6)]


@pytest.mark.parametrize(("method", "size"), [("rd", (48, 64)), ("fd", (40, 64))])
def test_sides_that_do_not_divide_are_refused(method: str, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiples of"):
        small_model(method)(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("method", METHODS)
def test_every_trainable_parameter_gets_a_gradient_and_the_teacher_none(method: str) -> None:
    model = small_model(method, centers=0 if method in ("rd", "fd") else 3)
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    teacher, student = model(model.normalize(pictures()))
    torch.autograd.backward(structural_loss(teacher, student, LossConfig())["total"])
    silent = [name for name, part in model.named_parameters() if part.requires_grad and (part.grad is None or part.grad.abs().max() == 0)]
    assert not silent
    assert not any(part.requires_grad for part in model.teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.teacher.state_dict().items())


def test_train_mode_reaches_the_student_but_not_the_teacher() -> None:
    model = small_model()
    model.train()
    assert model.student.training
    assert not any(part.training for part in model.teacher.modules())
    model.eval()
    assert not any(part.training for part in model.modules())


def test_plain_methods_have_no_cram_and_the_others_one_per_scale() -> None:
    for method in METHODS:
        names = [name for name, _ in small_model(method).named_parameters() if name.endswith(".alpha")]
        assert len(names) == (3 if method.startswith("snl") else 0)
    assert small_model("snl-rd", centers=0).student.crams is None
    cram = crams_of(small_model("snl-fd", centers=9, cram_alpha=2.0, cram_normalize=True, cram_positive_alpha=True))[1]
    assert (tuple(cram.centers.shape), cram.alpha.item(), cram.normalize_input, cram.positive_alpha) == ((9, 128), 2.0, True, True)


@pytest.mark.parametrize("method", ["snl-rd", "snl-fd"])
@pytest.mark.parametrize("feeds_next", [True, False])
def test_only_a_feeding_cram_changes_what_later_stages_see(method: str, feeds_next: bool) -> None:
    model = small_model(method, centers=3, cram_feeds_next=feeds_next).eval()
    images = model.normalize(pictures(1))
    first, later = (2, [0, 1]) if method == "snl-rd" else (0, [1, 2])
    with torch.no_grad():
        before = model(images)[1]
        crams_of(model)[first].centers.add_(1)
        after = model(images)[1]
    assert not torch.equal(before[first], after[first])
    assert all(torch.equal(before[scale], after[scale]) != feeds_next for scale in later)


def test_the_students_start_follows_the_global_seed_and_not_the_teacher() -> None:
    torch.manual_seed(4)
    one = build_model(ModelConfig(teacher="resnet18", teacher_weights="random", teacher_seed=1))
    torch.manual_seed(4)
    other = build_model(ModelConfig(teacher="resnet18", teacher_weights="imagenet"), load_teacher_weights=False)
    assert all(torch.equal(value, other.student.state_dict()[key]) for key, value in one.student.state_dict().items())


def test_a_whole_state_dict_restores_the_model_without_the_teachers_file() -> None:
    model = small_model().eval()
    restored = build_model(ModelConfig(teacher="resnet18", teacher_weights="imagenet"), load_teacher_weights=False).eval()
    restored.load_state_dict(model.state_dict())
    images = model.normalize(pictures(1))
    with torch.no_grad():
        for got, expected in zip(sum(restored(images), []), sum(model(images), []), strict=True):
            assert torch.equal(got, expected)


def test_pictures_are_normalized_with_imagenets_mean_and_deviation() -> None:
    picture = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    expected = [(0 / 255 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (255 / 255 - 0.406) / 0.225]
    assert small_model().normalize(picture).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    for wrong in (torch.zeros(1, 4, 4, 3), torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, 3, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"\(B, H, W, 3\) uint8"):
            small_model("fd").normalize(wrong)


@pytest.mark.parametrize(
    ("architecture", "bottleneck", "decoder"),
    # Blocks of the residual stage and channels of its result; blocks of the decoder's stages for 256, 128 and 64 planes.
    [("resnet18", (2, 512), (2, 2, 2)), ("resnet34", (2, 512), (3, 4, 6)), ("wide_resnet50_2", (3, 2048), (3, 4, 6))],
)
def test_bottleneck_and_decoder_are_rd4ads(architecture: Any, bottleneck: tuple[int, int], decoder: tuple[int, int, int]) -> None:
    model = build_model(ModelConfig(method="rd", teacher=architecture), load_teacher_weights=False)
    assert model.bottleneck is not None
    assert isinstance(model.student, ReverseStudent)
    assert len(model.bottleneck.embed) == bottleneck[0]
    assert tuple(len(stage) for stage in model.student.stages) == decoder
    layers = [part for part in model.student.modules() if isinstance(part, nn.ConvTranspose2d)]
    assert [(part.kernel_size, part.stride, part.bias) for part in layers] == [((2, 2), (2, 2), None)] * 6
    assert model.student.stages[0][0].shortcut[0].in_channels == bottleneck[1]  # type: ignore[union-attr, index]


def test_the_wide_bottleneck_and_decoder_are_twice_as_wide_inside() -> None:
    model = build_model(ModelConfig(method="rd", teacher="wide_resnet50_2"), load_teacher_weights=False)
    assert model.bottleneck is not None
    assert model.bottleneck.embed[1].conv2.out_channels == 1024  # type: ignore[union-attr]  # 512 planes, base width 128
    inner = [part.out_channels for part in model.student.stages[-1][1].modules() if isinstance(part, nn.Conv2d)]  # type: ignore[union-attr, index]
    assert inner == [128, 128, 256]


def test_forward_student_without_crams_is_the_teachers_network() -> None:
    teacher, student = build_teacher("resnet18", "random", seed=0), ForwardStudent(ResNetPyramid("resnet18")).eval()
    load_state(student.backbone, teacher.state_dict(), "teacher")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for got, expected in zip(student(images), teacher(images), strict=True):
            assert torch.equal(got, expected)


def test_the_teacher_has_no_layer4_and_no_fc() -> None:
    assert not [key for key in Teacher("resnet18").state_dict() if key.startswith(("layer4", "fc"))]
