// Command dns is CoreDNS with only the plugins that a cluster's own DNS needs.
//
// The stock build links the SDKs of several clouds, which takes longer to compile than the rest of the control plane.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

func main() {
	// A query passes the plugins in this order, whatever order the Corefile has: the template answers what the cluster does not know.
	dnsserver.Directives = []string{"bind", "health", "ready", "errors", "kubernetes", "template"}
	coremain.Run()
}
