"""A real page, written as an agent writes it, and real servers that look at it."""

import asyncio
import concurrent.futures
import math
import os
import struct
import sys
import tempfile
import time
import unittest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tether import lease  # noqa: E402

try:
    import grpc
except ImportError:
    grpc = None

SLOT, GENERATION = 5, 9


def now():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Page:
    """The agent's side."""

    def __init__(self):
        self.descriptor = os.memfd_create("page")
        os.ftruncate(self.descriptor, 16384)
        self.word(0, lease.MARK)
        self.node(lease.NEVER)
        self.word(3, lease.NEVER)
        self.own(lease.NEVER)

    def word(self, at, value):
        os.pwrite(self.descriptor, struct.pack("=Q", value), 8 * at)

    def node(self, enabled):
        self.word(2, enabled)

    def own(self, enabled, epoch=3, generation=GENERATION, alive=lease.NEVER, slot=SLOT):
        for place, value in enumerate((enabled, alive, epoch, generation)):
            self.word(8 + 4 * slot + place, value)

    def moves(self, count):
        self.word(5, count)

    def lease(self, **more):
        view = os.open(f"/proc/self/fd/{self.descriptor}", os.O_RDONLY)
        told = {"TETHER_LEASE": f"{view}:{SLOT}:{GENERATION}", "TETHER_INCARNATION": "42", **more}
        read = lease.Lease(told)
        os.close(view)
        return read


class Turning:
    """The page as it is read by one who is overtaken: right after its next look at this word the agent acts."""

    def __init__(self, words, after, act):
        self.words, self.after, self.act = words, after, act

    def __len__(self):
        return len(self.words)

    def __getitem__(self, at):
        word = self.words[at]
        if at == self.after and self.act:
            act, self.act = self.act, None
            act()
        return word


class Permission(unittest.TestCase):
    def setUp(self):
        self.page = Page()
        self.addCleanup(os.close, self.page.descriptor)

    def test_it_is_the_earlier_end_of_node_and_owner_and_never_where_there_is_none(self):
        read = self.page.lease()
        self.assertEqual((read.remaining(), read.incarnation(), read.epoch()), (math.inf, 42, 3))

        self.page.node(now() + 50_000_000_000)
        self.assertTrue(49 < read.remaining() <= 50)
        self.page.own(now() + 20_000_000_000)
        self.assertTrue(19 < read.remaining() <= 20 and read.is_valid())
        self.page.own(now() - 1)
        self.assertEqual((read.remaining(), read.is_valid()), (0, False))
        self.assertRaises(lease.Over, read.check)

    def test_who_lost_its_seat_has_no_permission_whatever_its_next_owner_has(self):
        read = self.page.lease()
        self.page.own(lease.NEVER, epoch=8, generation=GENERATION + 1)
        self.assertEqual((read.is_valid(), read.epoch()), (False, 0), "nor its session")

    def test_one_that_is_disabled_knows_until_when_it_may_be_there(self):
        read = self.page.lease()
        self.assertEqual(read.lifetime(), math.inf)
        self.page.node(now() - 1)
        self.page.word(3, now() + 60_000_000_000)
        self.page.own(now() + 50_000_000_000, alive=now() + 40_000_000_000)
        self.assertFalse(read.is_valid())
        self.assertTrue(39 < read.lifetime() <= 40)
        # The end of its owner's word is one, whatever its node may do.
        self.page.own(now() + 30_000_000_000, alive=now() + 40_000_000_000)
        self.assertTrue(29 < read.lifetime() <= 30)
        self.page.own(lease.NEVER, generation=0)
        self.assertEqual(read.lifetime(), 0)

    def test_one_that_moved_to_a_slot_of_its_own_reads_that_and_never_its_pools_again(self):
        read, other = self.page.lease(), self.page.lease(TETHER_INCARNATION="43")
        self.page.own(lease.NEVER, epoch=4, generation=lease.OWN | 42, alive=now() + 60_000_000_000, slot=300)
        self.assertEqual(read.lifetime(), math.inf, "nobody has said that it moved")
        self.page.moves(1)
        self.assertTrue(59 < read.lifetime() <= 60)
        self.assertEqual((read.is_valid(), read.epoch()), (True, 4))

        # The pool's slot is closed, and another's: who sits alone has lost nothing by it.
        self.page.own(lease.NEVER, generation=GENERATION + 1)
        self.assertTrue(read.is_valid())
        self.assertEqual((other.is_valid(), other.lifetime()), (False, 0))
        self.page.own(lease.NEVER, generation=0, slot=300)
        self.page.moves(2)
        self.assertFalse(read.is_valid())

    def test_one_that_is_moved_while_it_looks_has_lost_nothing(self):
        own = 8 + 4 * SLOT
        for after in (5, 2, own, own + 2):
            for ask, told in ((lease.Lease.check, None), (lease.Lease.epoch, 4), (lease.Lease.lifetime, math.inf)):
                with self.subTest(after=after, ask=ask.__name__):
                    self.page.moves(0)
                    self.page.own(lease.NEVER, generation=0, slot=300)
                    self.page.own(lease.NEVER, epoch=4)
                    read = self.page.lease()
                    read._words = Turning(read._words, after, self.move)
                    self.assertEqual(ask(read), told)

    def test_one_that_lost_its_seat_while_it_looks_and_was_not_moved_has_lost_it(self):
        read = self.page.lease()
        read._words = Turning(read._words, 5, lambda: self.page.own(0, generation=0))
        self.assertRaises(lease.Over, read.check)

    def move(self):
        """As an agent does it that moves the last of a pool: opened, counted, and the pool's slot closed."""
        self.page.own(lease.NEVER, epoch=4, generation=lease.OWN | 42, slot=300)
        self.page.moves(1)
        self.page.own(0, epoch=0, generation=0, alive=0)

    def test_outside_of_tether_there_is_no_end_and_something_else_is_no_page(self):
        read = lease.Lease({})
        self.assertEqual((read.remaining(), read.incarnation(), read.epoch()), (math.inf, 0, 0))
        self.assertIsNone(read.refusal([("tether-epoch", "1")]))
        self.page.word(0, 1)
        self.assertRaises(ValueError, self.page.lease)

    def test_a_call_of_an_earlier_session_or_for_another_incarnation_is_fenced(self):
        read = self.page.lease()

        def reason(**metadata):
            refused = read.refusal([(name.replace("_", "-"), value) for name, value in metadata.items()])
            return refused and refused[0]

        self.assertEqual(reason(tether_epoch="2"), "LEASE_FENCED")
        self.assertIsNone(reason(tether_epoch="3"))
        self.assertEqual(reason(tether_epoch="-3"), "METADATA_INVALID")
        self.assertEqual(reason(tether_worker="a.b/0.41"), "LEASE_FENCED")
        self.assertIsNone(reason(tether_worker="a.b/0.42"))
        self.assertIsNone(reason(tether_worker="a.b/0"))
        # Who was heard of once is not forgotten, also where the node does not know yet.
        self.assertIsNone(reason(tether_epoch="5"))
        self.assertEqual(reason(tether_epoch="4"), "LEASE_FENCED")
        self.page.own(lease.NEVER, epoch=7)
        self.assertEqual((reason(tether_epoch="6"), read.epoch()), ("LEASE_FENCED", 7))
        self.page.node(0)
        self.assertEqual(reason(), "LEASE_EXPIRED")


@unittest.skipIf(grpc is None, "grpcio is not installed here")
class Calls(unittest.TestCase):
    def setUp(self):
        self.page = Page()
        self.addCleanup(os.close, self.page.descriptor)
        self.dir = tempfile.TemporaryDirectory()
        self.addCleanup(self.dir.cleanup)
        self.address = "unix:" + os.path.join(self.dir.name, "s.sock")

    def reason(self, channel, kind="UnaryUnary", service="test.Echo", **metadata):
        """Why a call is refused; none where it is answered."""
        metadata = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        path = f"/{service}/{kind}"
        try:
            if kind == "UnaryUnary":
                channel.unary_unary(path)(b"x", metadata=metadata, timeout=20)
            else:
                list(channel.stream_stream(path)(iter([b"x"]), metadata=metadata, timeout=20))
        except grpc.RpcError as error:
            details = dict(error.trailing_metadata())["grpc-status-details-bin"]
            self.assertIn(b"tether", details)
            self.assertEqual(error.code(), grpc.StatusCode.FAILED_PRECONDITION)
            return next(word for word in ("LEASE_EXPIRED", "LEASE_FENCED") if word.encode() in details)
        return None

    def all_refusals(self):
        with grpc.insecure_channel(self.address) as channel:
            for kind in ("UnaryUnary", "StreamStream"):
                self.page.node(lease.NEVER)
                self.assertIsNone(self.reason(channel, kind, tether_epoch="3"))
                self.assertEqual(self.reason(channel, kind, tether_epoch="2"), "LEASE_FENCED")
                self.page.node(now())
                self.assertEqual(self.reason(channel, kind), "LEASE_EXPIRED")
                self.assertIsNone(self.reason(channel, kind, service="grpc.health.v1.Health"))

    def test_a_server_with_threads_refuses(self):
        handlers = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "StreamStream": grpc.stream_stream_rpc_method_handler(lambda requests, _: requests),
        }
        pool = concurrent.futures.ThreadPoolExecutor(2)
        server = grpc.server(pool, interceptors=[lease.Interceptor(self.page.lease())])
        for service in ("test.Echo", "grpc.health.v1.Health"):
            server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
        server.add_insecure_port(self.address)
        server.start()
        self.addCleanup(lambda: server.stop(None).wait())

        self.all_refusals()

    def test_a_server_of_asyncio_refuses(self):
        async def echo(request, _):
            return request

        async def stream(requests, _):
            async for request in requests:
                yield request

        handlers = {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(echo),
            "StreamStream": grpc.stream_stream_rpc_method_handler(stream),
        }

        async def serve():
            server = grpc.aio.server(interceptors=[lease.AioInterceptor(self.page.lease())])
            for service in ("test.Echo", "grpc.health.v1.Health"):
                server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)])
            server.add_insecure_port(self.address)
            await server.start()
            await asyncio.to_thread(self.all_refusals)
            await server.stop(None)

        asyncio.run(serve())


if __name__ == "__main__":
    unittest.main()
