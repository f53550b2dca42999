// Package etcdtest runs real etcd processes for tests.
//
// [Start] gives a cluster of any number of members on 127.0.0.1, each of which
// can be killed, restarted, paused and resumed. [Fill] writes a mixed history,
// [StartLoad] writes at full speed until it is stopped, and [HashKV] is etcd's
// own proof that two keyspaces are the same.
//
// The programs are built once per user from the module in the folder binaries
// and kept in the user's cache; see [Build].
package etcdtest
