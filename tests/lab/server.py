# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""A real server: each answer is one line of server name, local port and client address.

It speaks HTTP on TCP ports 80 and 53, HTTPS on 443, and answers every datagram to UDP port 53.
Usage: server.py NAME CERTIFICATE, where the file holds the certificate and its key.
"""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import sys
import threading

IFINDEX_BYTES = 4


def answer(name: str, port: int, client: str) -> bytes:
    """Return the one line; IPv4 clients reach a dual-stack socket as mapped IPv6 addresses."""
    return f"{name} {port} {client.removeprefix('::ffff:')}\n".encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every GET with who answered whom."""

    name = ""

    def do_GET(self) -> None:
        """Send the one line."""
        body = answer(self.name, self.connection.getsockname()[1], self.client_address[0])
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


class Server(http.server.ThreadingHTTPServer):
    """A server for both address families."""

    address_family = socket.AF_INET6
    request_queue_size = 128

    def server_bind(self) -> None:
        """Accept IPv4 as well, and look no host name up."""
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.socket.bind(self.server_address)


def secured(server: Server, certificate: str) -> Server:
    """Return the server speaking TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # The handshake happens in the connection's own thread: a silent client must not stop the others.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


def datagram_socket(port: int) -> socket.socket:
    """Return a UDP socket for both families that is told which address each datagram was sent to."""
    server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    server.bind(("::", port))
    return server


def serve_datagrams(server: socket.socket, name: str) -> None:
    """Answer every datagram from the address that it was sent to, as the client of a virtual service expects."""
    port = server.getsockname()[1]
    while True:
        _datagram, [(level, kind, info)], _flags, client = server.recvmsg(512, socket.CMSG_SPACE(20))
        # The same control message sets the sender's address; the interface is left to the routes, because
        # what came in through a tunnel does not go out through it.
        source = info[:-IFINDEX_BYTES] + bytes(IFINDEX_BYTES)
        # The address may be gone by now, or the route to the client.
        with contextlib.suppress(OSError):
            server.sendmsg([answer(name, port, client[0])], [(level, kind, source)], 0, client)


def main(name: str, certificate: str) -> None:
    """Serve all ports until killed."""
    Handler.name = name
    plain = [Server(("::", port), Handler) for port in (80, 53)]
    for server in (*plain, secured(Server(("::", 443), Handler), certificate)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    serve_datagrams(datagram_socket(53), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
