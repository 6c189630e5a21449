// Package check_test holds the Kubernetes manifests to what a cluster would accept, without a cluster. It is a module
// of its own, so that Kubernetes' libraries stay out of Freshet's.
package check_test

import (
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// rendered is the base as it would be applied.
type rendered struct {
	namespace  *corev1.Namespace
	deployment *appsv1.Deployment
	service    *corev1.Service
	disruption *policyv1.PodDisruptionBudget
	network    *networkingv1.NetworkPolicy
	config     *corev1.ConfigMap
}

// base and overlay are what is rendered: the latter has every component.
const (
	base    = "../base"
	overlay = "testdata/overlay"
)

// render builds the folder in process and decodes every object strictly: an unknown or doubled field is an error.
func render(t *testing.T, folder string) rendered {
	t.Helper()
	objects, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, policyv1.AddToScheme, networkingv1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	decoder := serializer.NewCodecFactory(scheme, serializer.EnableStrict).UniversalDeserializer()
	var r rendered
	for _, object := range objects.Resources() {
		text, err := object.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		decoded, _, err := decoder.Decode(text, nil, nil)
		if err != nil {
			t.Errorf("%s %s: %v", object.GetKind(), object.GetName(), err)
			continue
		}
		switch o := decoded.(type) {
		case *corev1.Namespace:
			r.namespace = o
		case *appsv1.Deployment:
			r.deployment = o
		case *corev1.Service:
			r.service = o
		case *policyv1.PodDisruptionBudget:
			r.disruption = o
		case *networkingv1.NetworkPolicy:
			r.network = o
		case *corev1.ConfigMap:
			r.config = o
		default:
			t.Errorf("%s %s: this test knows no such kind; teach it", object.GetKind(), object.GetName())
		}
	}
	if t.Failed() {
		t.FailNow()
	}
	if r.namespace == nil || r.deployment == nil || r.service == nil || r.disruption == nil || r.network == nil || r.config == nil {
		t.Fatalf("the base lacks an object: %+v", r)
	}
	return r
}

func TestSelectorsFindThePods(t *testing.T) {
	r := render(t, base)
	pods := labels.Set(r.deployment.Spec.Template.Labels)
	for name, selector := range map[string]*metav1.LabelSelector{
		"Deployment":          r.deployment.Spec.Selector,
		"PodDisruptionBudget": r.disruption.Spec.Selector,
		"NetworkPolicy":       &r.network.Spec.PodSelector,
		"Service":             {MatchLabels: r.service.Spec.Selector},
	} {
		s, err := metav1.LabelSelectorAsSelector(selector)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if s.Empty() || !s.Matches(pods) {
			t.Errorf("%s selects %q, the pods are labelled %v", name, s, pods)
		}
	}
	for _, spread := range r.deployment.Spec.Template.Spec.TopologySpreadConstraints {
		s, err := metav1.LabelSelectorAsSelector(spread.LabelSelector)
		if err != nil || s.Empty() || !s.Matches(pods) {
			t.Errorf("spread over %s selects %q (%v), the pods are labelled %v", spread.TopologyKey, s, err, pods)
		}
	}
}

func TestNamespaceHoldsEverything(t *testing.T) {
	r := render(t, base)
	for _, object := range []metav1.Object{r.deployment, r.service, r.disruption, r.network, r.config} {
		if object.GetNamespace() != r.namespace.Name {
			t.Errorf("%s is in namespace %q, want %q", object.GetName(), object.GetNamespace(), r.namespace.Name)
		}
	}
}

func TestPodsPassTheRestrictedSecurityStandard(t *testing.T) {
	r := render(t, overlay)
	level := r.namespace.Labels[api.EnforceLevelLabel]
	if level != string(api.LevelRestricted) {
		t.Fatalf("the namespace enforces %q, want %q", level, api.LevelRestricted)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	template := &r.deployment.Spec.Template
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(restricted, &template.ObjectMeta, &template.Spec) {
		if !result.Allowed {
			t.Errorf("%s: %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
}

func TestPortsAndReferencesResolve(t *testing.T) {
	r := render(t, overlay)
	pod := r.deployment.Spec.Template.Spec
	container := pod.Containers[0]
	named := func(port string) bool {
		return slices.ContainsFunc(container.Ports, func(p corev1.ContainerPort) bool { return p.Name == port })
	}
	for _, port := range r.service.Spec.Ports {
		if !named(port.TargetPort.String()) {
			t.Errorf("the Service leads to port %q, which the container lacks", port.TargetPort.String())
		}
	}
	for name, probe := range map[string]*corev1.Probe{
		"/startupz": container.StartupProbe, "/readyz": container.ReadinessProbe, "/livez": container.LivenessProbe,
	} {
		if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != name || probe.HTTPGet.Port.String() != "admin" {
			t.Errorf("the probe %s is not asked on the admin port: %+v", name, probe)
		}
	}
	for _, rule := range r.network.Spec.Ingress {
		for _, port := range rule.Ports {
			if !named(port.Port.String()) {
				t.Errorf("the NetworkPolicy lets in port %q, which the container lacks", port.Port.String())
			}
		}
	}
	for _, source := range container.EnvFrom {
		if source.ConfigMapRef == nil || source.ConfigMapRef.Name != r.config.Name {
			t.Errorf("envFrom %+v does not name the ConfigMap %s", source, r.config.Name)
		}
	}
	for _, mount := range container.VolumeMounts {
		if !slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == mount.Name }) {
			t.Errorf("the mount %s has no volume", mount.MountPath)
		}
	}
	delay, err := time.ParseDuration(r.config.Data["FRESHET_DRAIN_DELAY"])
	if err != nil || delay < 2*time.Second {
		t.Errorf("FRESHET_DRAIN_DELAY is %v, %v: too short for answers on open connections", delay, err)
	}
	// 30 s is the default of FRESHET_DRAIN_TIMEOUT, and 10 s are for closing.
	if grace, sleep := *pod.TerminationGracePeriodSeconds, container.Lifecycle.PreStop.Sleep.Seconds; grace < sleep+int64(delay.Seconds())+30+10 {
		t.Errorf("of %d s of grace preStop takes %d, and the delay %v: too few are left to drain", grace, sleep, delay)
	}
	limit := container.Resources.Limits.Memory().Value()
	for _, variable := range container.Env {
		if variable.Name != "GOMEMLIMIT" {
			continue
		}
		soft, err := resource.ParseQuantity(strings.TrimSuffix(variable.Value, "B"))
		if part := float64(soft.Value()) / float64(limit); err != nil || part < 0.85 || part > 0.95 {
			t.Errorf("GOMEMLIMIT is %s, %v, which is %.2f of the limit; want about 0.9", variable.Value, err, part)
		}
		return
	}
	t.Error("GOMEMLIMIT is not set")
}

// The component of the admin token mounts the file that it names.
func TestAdminToken(t *testing.T) {
	pod := render(t, overlay).deployment.Spec.Template.Spec
	container := pod.Containers[0]
	at := slices.IndexFunc(container.Env, func(v corev1.EnvVar) bool { return v.Name == "FRESHET_ADMIN_TOKEN_FILE" })
	if at < 0 {
		t.Fatal("the file is not named")
	}
	file := container.Env[at].Value
	if !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool {
		return m.MountPath == path.Dir(file) && m.ReadOnly && slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool {
			return v.Name == m.Name && v.Secret != nil && v.Secret.SecretName == "freshet-admin"
		})
	}) {
		t.Errorf("%s is in no mounted secret", file)
	}
}

// Every setting that the manifests hand to `freshet serve` is one that it knows.
func TestServeKnowsItsSettings(t *testing.T) {
	r := render(t, overlay)
	flags := serveFlags(t)
	container := r.deployment.Spec.Template.Spec.Containers[0]
	if len(container.Args) == 0 || container.Args[0] != "serve" {
		t.Fatalf("the container runs %q, want serve", container.Args)
	}
	for _, arg := range container.Args[1:] {
		name, _, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		if !flags[name] {
			t.Errorf("`freshet serve` has no flag --%s", name)
		}
	}
	settings := make([]string, 0, len(r.config.Data))
	for name := range r.config.Data {
		settings = append(settings, name)
	}
	for _, variable := range container.Env {
		if strings.HasPrefix(variable.Name, "FRESHET_") {
			settings = append(settings, variable.Name)
		}
	}
	for _, name := range settings {
		flag := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "FRESHET_")), "_", "-")
		if !flags[flag] {
			t.Errorf("%s stands for no flag of `freshet serve`", name)
		}
	}
}

// serveFlags asks the program itself which flags `freshet serve` has.
func serveFlags(t *testing.T) map[string]bool {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "run", "./cmd/freshet", "serve", "--help")
	command.Dir = "../.."
	help, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", command, err, help)
	}
	flags := map[string]bool{}
	for word := range strings.FieldsSeq(string(help)) {
		if name, ok := strings.CutPrefix(word, "--"); ok {
			flags[strings.TrimRight(name, ",")] = true
		}
	}
	if len(flags) == 0 {
		t.Fatalf("no flags in:\n%s", help)
	}
	return flags
}
