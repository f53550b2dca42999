// Package faulttest breaks, for tests, what programs stand on: a [Disk] that loses
// power, and relays that lose what programs send each other, one for connections
// ([TCPRelay]) and one for packets ([UDPRelay]).
package faulttest
