# SPDX-License-Identifier: GPL-3.0-or-later
# Copyright: lvs.fleet contributors
"""A real server: HTTP on 80 and HTTPS on 443, each answer one line of server name, local port and client address.

Usage: server.py NAME CERTIFICATE, where the file holds the certificate and its key.
"""

from __future__ import annotations

import http.server
import socket
import ssl
import sys
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers every GET with who answered whom."""

    name = ""

    def do_GET(self) -> None:
        """Send the one line."""
        # IPv4 clients reach the dual-stack socket as mapped IPv6 addresses.
        client = self.client_address[0].removeprefix("::ffff:")
        body = f"{self.name} {self.connection.getsockname()[1]} {client}\n".encode()
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


def main(name: str, certificate: str) -> None:
    """Serve both ports until killed."""
    Handler.name = name
    plain, secure = Server(("::", 80), Handler), Server(("::", 443), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    # The handshake happens in the connection's own thread: a silent client must not stop the others.
    secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    plain.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
