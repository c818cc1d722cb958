// Command etcd is etcd's own server: its main package lies in a module with replace directives, which Go cannot install.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
