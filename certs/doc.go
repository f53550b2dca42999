// Package certs makes certificates that say who a node is, and turns them into
// TLS configurations that believe nobody else.
//
// [Init] makes a certificate authority for one domain, [Issue] certificates
// signed by it. A node calls [Load] with its [Files], gets [Credentials], keeps
// [Credentials.Run] running, and takes its TLS configurations from
// [Credentials.ServerTLS] and [Credentials.ClientTLS].
//
//	ca.crt    the authority, limited to URIs of its domain   on every node
//	ca.key    its key                                        stays where it was made
//	NAME.crt  one URI SAN: the heliograph.Identity           on that node
//	NAME.key  its key                                        on that node
//
// What holds for every connection: TLS 1.3, a certificate on both sides, signed
// by a CA of the CA file alone (never of the system), not expired, with exactly
// one URI SAN that is an identity of the node's own domain. A common name is
// never looked at. A node dials only a source or relay of the cluster that it
// means to reach ([Credentials.ClientTLS]); for the admin API, any of its nodes
// ([Credentials.AdminTLS]). Certificates of all nodes are issued for being dialled,
// and carry the cluster as a DNS name: the role alone keeps a mirror from being
// followed.
//
// Files are read again every few seconds. New ones that pass the checks of Load
// take effect at the next handshake, so a leaf is rotated by issuing it again,
// and a CA by three steps: write the old and the new one into every CA file,
// issue all certificates from the new one, take the old one out. Connections
// that are open stay open; whoever owns them ends them at the time that
// [Credentials.PeerIdentity] gives.
package certs
