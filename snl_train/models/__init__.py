"""Networks: the frozen teacher, the students of both directions, CRAM, and the memory of normal features."""

from snl_train.models.cram import Cram
from snl_train.models.forward import ForwardStudent
from snl_train.models.memory import FeatureMemory
from snl_train.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from snl_train.models.reverse import Bottleneck, ReverseStudent
from snl_train.models.teacher import Teacher, build_teacher
from snl_train.models.teacher_student import TeacherStudent, build_model
from snl_train.models.weights import fetch_teacher

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Bottleneck",
    "Cram",
    "FeatureMemory",
    "ForwardStudent",
    "ReverseStudent",
    "Teacher",
    "TeacherStudent",
    "build_model",
    "build_teacher",
    "fetch_teacher",
]
