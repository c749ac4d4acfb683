/* A PKCS#11 module whose C_Decrypt takes DELAY_US microseconds longer than that of the real module
 * (REAL, its path; both given at compile time), as a device behind a network does. Calls of several
 * sessions wait beside each other. All else goes to the real module as it came.
 *
 * The function list is its version and then 68 pointers in the order of PKCS#11 2.40's pkcs11f.h.
 */
#include <dlfcn.h>
#include <string.h>
#include <time.h>

typedef unsigned long CK_ULONG;
typedef CK_ULONG CK_RV;
typedef unsigned char CK_BYTE;
typedef struct {
    CK_BYTE version[2];
    void *functions[68];
} FunctionList;
typedef CK_RV (*Decrypt)(CK_ULONG, CK_BYTE *, CK_ULONG, CK_BYTE *, CK_ULONG *);

enum { GET_FUNCTION_LIST = 3, DECRYPT = 34 };

static FunctionList list;
static Decrypt real_decrypt;

static CK_RV slow_decrypt(CK_ULONG session, CK_BYTE *in, CK_ULONG in_length, CK_BYTE *out,
                          CK_ULONG *out_length) {
    struct timespec delay = {0, DELAY_US * 1000L};
    nanosleep(&delay, NULL);
    return real_decrypt(session, in, in_length, out, out_length);
}

__attribute__((visibility("default"))) CK_RV C_GetFunctionList(FunctionList **to) {
    void *module = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
    CK_RV (*get)(FunctionList **) = NULL;
    FunctionList *real;
    if (module != NULL)
        *(void **)&get = dlsym(module, "C_GetFunctionList");
    if (get == NULL || get(&real) != 0)
        return 5; /* CKR_GENERAL_ERROR */
    memcpy(&list, real, sizeof list);
    real_decrypt = (Decrypt)real->functions[DECRYPT];
    list.functions[DECRYPT] = (void *)slow_decrypt;
    list.functions[GET_FUNCTION_LIST] = (void *)C_GetFunctionList;
    *to = &list;
    return 0;
}
