"""Types for the generated gRPC code, which has none."""

from collections.abc import Callable
from typing import Any

import grpc

from glinthawk.wire.proto import (
    control_pb2_grpc,
    data_pb2_grpc,
    gateway_pb2_grpc,
    membership_pb2_grpc,
    pages_pb2_grpc,
)

_Stub = Callable[[grpc.Channel], Any]
_Register = Callable[[Any, grpc.Server], None]

control_stub: _Stub = control_pb2_grpc.ControlStub
data_stub: _Stub = data_pb2_grpc.DataStub
membership_stub: _Stub = membership_pb2_grpc.MembershipStub
pages_stub: _Stub = pages_pb2_grpc.PagesStub
inference_stub: _Stub = gateway_pb2_grpc.InferenceStub
jobs_stub: _Stub = gateway_pb2_grpc.JobsStub
operations_stub: _Stub = gateway_pb2_grpc.OperationsStub

register_control: _Register = control_pb2_grpc.add_ControlServicer_to_server
register_data: _Register = data_pb2_grpc.add_DataServicer_to_server
register_membership: _Register = membership_pb2_grpc.add_MembershipServicer_to_server
register_pages: _Register = pages_pb2_grpc.add_PagesServicer_to_server
register_inference: _Register = gateway_pb2_grpc.add_InferenceServicer_to_server
register_jobs: _Register = gateway_pb2_grpc.add_JobsServicer_to_server
register_operations: _Register = gateway_pb2_grpc.add_OperationsServicer_to_server
